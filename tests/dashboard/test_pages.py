"""The pages over plain HTTP: who gets in, what is refused, and that a page says it in words."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import sqlite3
import sys
from html import escape

import pytest
from starlette.testclient import TestClient

from orchestrator.adapters.database.queries import Queries
from orchestrator.domain.accounts import Account
from orchestrator.entrypoints.cli.output import size
from orchestrator.entrypoints.dashboard import curve
from orchestrator.entrypoints.dashboard.assets import assets
from orchestrator.entrypoints.http.app import make_app
from orchestrator.entrypoints.http.logins import CODE_LIVES_S, MAX_CODES
from orchestrator.entrypoints.http.middleware import MAX_JSON_BYTES
from orchestrator.entrypoints.static import vendor
from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from tests.http.http_client import Api, Machine, People

HTML = {"Accept": "text/html"}
ORIGIN = {"Origin": "http://127.0.0.1"}
MAX_ASSETS = 60 * 1024


@pytest.fixture
def people(site) -> People:
    return People.of(site)


def log_in(site: Api, caller=None) -> None:
    link = (caller or site.admin).post("/login-links").json()["url"]
    assert site.client.get(link[link.index("/login") :]).status_code == 200


def test_a_link_opens_the_dashboard_once(site, clock):
    """Guard: with `get` in place of `pop` in `Logins.use` the second browser came in as well."""
    link = site.admin.post("/login-links").json()["url"]
    path = link[link.index("/login") :]
    answer = site.client.get(path)
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 200
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert 'url=/"' in answer.text
    assert site.client.get("/", headers=HTML).status_code == 200
    site.client.cookies.clear()
    again = site.client.get(path)
    assert again.status_code == 401
    assert "This link has expired" in again.text
    late = site.admin.post("/login-links").json()["url"]
    clock.tick(CODE_LIVES_S + 1)
    assert site.client.get(late[late.index("/login") :]).status_code == 401


def test_a_revoked_token_leaves_no_way_in(site, people):
    """Guard: without `Logins.forget` a link that a thief had made opened the dashboard an hour later."""
    stolen = people.ann.post("/tokens", {"name": "stolen"}).json()
    paths = []
    for token in (stolen["secret"], people.bob.token):
        link = site.as_(token).post("/login-links").json()["url"]
        paths.append(link[link.index("/login") :])
    assert people.ann.call("DELETE", f"/tokens/{stolen['id']}").status_code == 204
    assert [site.client.get(path).status_code for path in paths] == [401, 200]


def test_one_members_links_push_out_nobody_elses(site, people):
    """Guard: with one bound for all, a member's thousand links took the admin's away."""
    admins = site.admin.post("/login-links").json()["url"]
    anns = [people.ann.post("/login-links").json()["url"] for _ in range(MAX_CODES + 1)]
    shown = [site.client.get(link[link.index("/login") :]).status_code for link in (admins, anns[0], anns[1], anns[-1])]
    assert shown == [200, 401, 200, 200]


def test_without_a_login_every_page_says_how_to_get_one(site):
    for path in ("/", "/datasets", "/fleet", "/accounts", "/submit", "/people", "/notifications", "/jobs/job-x"):
        answer = site.client.get(path, headers=HTML)
        assert answer.status_code == 401
        assert "trainhop open" in answer.text
    for path in ("/jobs/job-x/curve.json", "/jobs/job-x/live"):
        assert site.client.get(path).json()["status"] == 401


def test_the_cookie_works_for_requests_of_our_own_pages_alone(site):
    """Guard: without the look at Origin in `cookie_token`, the POST that names no page was carried out."""
    log_in(site)
    body = {"name": "x"}
    assert site.client.get("/api/v1/me").status_code == 200
    assert site.client.post("/api/v1/members", json=body).status_code == 401
    assert site.client.post("/api/v1/members", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert site.client.post("/api/v1/members", json=body, headers=ORIGIN).status_code == 201
    assert site.client.post("/people", data={"name": "y"}, headers={"Origin": "null"}).status_code == 403


def test_logging_out_makes_the_cookie_useless(site):
    """Guard: without deleting the token, the cookie that a thief had kept went on working."""
    log_in(site)
    kept = dict(site.client.cookies)
    assert site.client.post("/logout", headers=ORIGIN).status_code == 303
    site.client.cookies.update(kept)
    assert site.client.get("/", headers=HTML).status_code == 401


def test_a_report_between_two_metrics_is_not_skipped(site, people, provider):
    """Seen failing with the position of the newest point that was read: the loss had been read before the report, the
    learning rate after it, and the step's loss was never sent."""
    job = people.ann.submit()["id"]
    machine = Machine.launched(site, provider)
    machine.start()

    def report(*steps):
        machine.report(steps[-1], metrics=[{"step": s, "values": {"loss": 1.0, "learning_rate": 0.1}} for s in steps])

    report(1)
    server = site.client.app.state.server
    queries = server.dashboard_queries

    class Interrupted(type(queries)):
        """A report arrives as soon as the loss was read."""

        def __init__(self):
            self._engine = queries._engine

        def curve(self, job_id, name):
            found = super().curve(job_id, name)
            if name == "loss":
                report(2, 3)
            return found

    site.client.app.state.server = dataclasses.replace(server, dashboard_queries=Interrupted())
    log_in(site)
    first = site.client.get(f"/jobs/{job}/curve.json?names=loss,learning_rate").json()
    assert (first["series"]["loss"][0], first["series"]["learning_rate"][0]) == ([1], [1, 1, 1])  # differences
    rest = curve.since(server, job, server.queries.sessions(job_id=job), curve.cursor_of(first["cursor"]))
    assert rest is not None
    assert {2, 3} <= {row[0] for row in rest["loss"]}


def test_members_see_their_own_jobs_alone(site, people, provider):
    """Guard: without `may_see` in `curve.my_job` bob read ann's curve, log and live stream."""
    job = people.ann.submit(name="anns-job")["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    machine.report(1)
    log_in(site, people.bob)
    for path in ("", "/curve.json", "/live", f"/sessions/{machine.lease}", f"/sessions/{machine.lease}/raw"):
        assert site.client.get(f"/jobs/{job}{path}").status_code == 404, path
    assert site.client.post(f"/jobs/{job}/cancel", headers=ORIGIN).status_code == 404
    assert site.client.get(f"/submit?clone={job}").status_code == 404
    assert "anns-job" not in site.client.get("/").text + site.client.get("/fleet").text
    assert site.client.post("/people", data={"name": "eve"}, headers=ORIGIN).status_code == 403
    assert site.client.post(f"/people/{job}/link", headers=ORIGIN).status_code == 403
    site.client.cookies.clear()
    log_in(site, people.ann)
    assert "anns-job" in site.client.get("/").text


def test_the_list_says_why_a_job_waits(site, people, provider):
    provider.rooms = type(provider.rooms)(slots=0, session_s=10.0)
    job = people.ann.submit()["id"]
    log_in(site, people.ann)
    reason = people.ann.get(f"/jobs/{job}").json()["waiting"]["reason"]
    assert f'<small class="cause" title="{escape(reason)}">' in site.client.get("/").text


def test_a_job_that_cannot_begin_says_why_and_what_to_do(site, people, provider, clock):
    """Guards: without the words of the launch in `job_status.html` a job that waits for a provider showed nothing;
    without `cause` in `Session` a program could not tell one end from another."""
    job = people.ann.submit()["id"]
    log_in(site, people.ann)
    launch = provider.launch

    def away(_):
        raise ProviderUnavailable("the service answers 503")

    provider.launch = away
    assert dispatch(site.app.context) == 1
    provider.launch = launch
    shown = people.ann.get(f"/jobs/{job}").json()
    assert (shown["state"], shown["session"]["state"]) == ("starting", "provisioning")
    words = "the provider has not confirmed the session yet: the service answers 503"
    assert shown["waiting"]["reason"] == words
    assert words in site.client.get(f"/jobs/{job}").text
    reconcile(site.app.context)
    for fence in (2, 3, 4):
        machine = Machine.launched(site, provider)
        machine.fence = fence
        said = machine.said("release", step=0, reason="unfit", detail="ERROR: no route to the index", cause="install")
        assert machine.say("release", said).status_code == 204
        waits = people.ann.get(f"/jobs/{job}").json()["waiting"]
        clock.tick(1801)
        detail = "the packages could not be installed (ERROR: no route to the index): update trainhop if"
        assert detail in site.client.get(f"/jobs/{job}").text
    assert waits is None
    ended = people.ann.get(f"/jobs/{job}/sessions").json()["items"]
    assert [s["cause"] for s in ended] == ["", "install", "install", "install"]
    assert (
        people.ann.get(f"/jobs/{job}")
        .json()["message"]
        .startswith(f"stopped after 3 sessions without a step, because {detail}")
    )


def test_errors_are_pages_for_people_and_documents_for_programs(site):
    log_in(site)
    page = site.client.get("/jobs/job-none", headers=HTML)
    assert page.status_code == 404
    assert "There is no job job-none" in page.text
    assert site.client.get("/jobs/job-none").headers["content-type"] == "application/problem+json"
    assert site.client.get("/api/v1/jobs/job-none", headers=HTML).headers["content-type"] == "application/problem+json"
    assert site.client.get("/nowhere", headers=HTML).text.count("<h1>") == 1
    assert site.client.get("/", headers=HTML | {"Host": "evil.example"}).status_code == 421
    assert site.client.get("/?state=nonsense", headers=HTML).status_code == 422
    piece = site.client.post("/jobs/job-none/pause", headers=HTML | ORIGIN | {"HX-Request": "true"})
    assert piece.headers["hx-retarget"] == "#notice"


def test_whatever_goes_wrong_is_said_in_words(site):
    """Guards: with three kinds of errors wrapped instead of all, a database that did not answer and a bug were raw JSON
    to people; with `problem` in place of `refused`, so was what the gate refuses; without `_known` the page had no way
    on; without `_from_disk` and its like for the database a full disk was a bug, or a database that did not answer."""
    log_in(site)
    anyhow = TestClient(site.client.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    anyhow.cookies.update(dict(site.client.cookies))
    script = HTML | {"HX-Request": "true"}

    class FailingQueries(Queries):
        error: Exception

        def jobs(self, **_):
            raise self.error

    state, failing = site.client.app.state, FailingQueries(site.app.engine)
    state.server = dataclasses.replace(state.server, queries=failing)
    for error, status, words in (
        (sqlite3.OperationalError("database is locked"), 503, "The database does not answer"),
        (sqlite3.OperationalError("database or disk is full"), 503, "disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), 503, "disk is full"),
        (OSError(errno.EIO, "Input/output error"), 500, "The server had an unexpected error"),
        (RuntimeError("a bug"), 500, "The server had an unexpected error"),
    ):
        failing.error = error
        page = anyhow.get("/", headers=HTML)
        assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert words in page.text
        assert 'aria-label="Pages"' in page.text
        piece = anyhow.get("/", headers=script)
        assert (piece.status_code, piece.headers["hx-retarget"]) == (status, "#notice")
        assert words in piece.text
        assert anyhow.get("/").json()["status"] == status
    assert anyhow.get("/", headers=HTML | {"Host": "evil.example"}).text.startswith("<!doctype html>")
    assert anyhow.get("/nowhere", headers=HTML).text.count('aria-label="Pages"') == 1
    assert site.client.get("/tokens", headers=HTML).headers["location"] == "/people"


def test_a_data_file_may_be_as_large_on_a_page_as_by_the_api(make_server, tmp_path):
    """Guards: with `/submit` left out of `_UPLOADS`, both were refused at the limit of JSON; what is larger than the
    limit of uploads is refused in words, announced or not."""
    most = MAX_JSON_BYTES + (4 << 20)
    app = make_server(f"sqlite:///{tmp_path / 'trainhop.db'}", max_upload_bytes=most)
    rows = (b'{"text": "%s"}\n' % (b"x" * (1 << 20))) * (MAX_JSON_BYTES >> 20)
    with TestClient(make_app(app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        log_in(Api(app=app, client=client))
        headers = HTML | ORIGIN
        sent = client.post("/submit/data?name=rows.jsonl", content=rows, headers=headers)
        assert sent.status_code == 200
        assert "rows.jsonl" in sent.text
        form = {"base_model": "org/small", "max_steps": "1"}
        assert client.post("/submit", data=form, files={"file": ("r.jsonl", rows)}, headers=headers).status_code == 303
        large = bytes(most + 1)
        for body in (large, iter([large])):
            refused = client.post("/submit/data?name=rows.jsonl", content=body, headers=headers)
            assert (refused.status_code, f"is larger than {size(most)}" in refused.text) == (413, True)
            assert refused.text.startswith("<!doctype html>")
        piece = client.post("/submit/data?name=rows.jsonl", content=large, headers=headers | {"HX-Request": "true"})
        assert piece.text.startswith('<div class="callout bad"')


def test_the_same_job_can_be_sent_again_as_it_is_shown(site):
    """What is copied is what was submitted: the request below queues an equal job."""
    from html import unescape

    log_in(site)
    name = "it's $(quoted) `here`"
    job = site.admin.submit(name=name, sample_prompts=["Is it 'late'?"])
    text = unescape(site.client.get(f"/jobs/{job['id']}").text)
    import shlex

    words = shlex.split(text[text.index("curl -sS") : text.index("</code>", text.index("curl -sS"))])
    again = site.admin.post("/jobs", json.loads(words[-1])).json()
    assert again["spec"] == job["spec"]


def test_what_pages_are_made_of_is_small_and_unchanged(site):
    assert vendor.faults() == []
    shown = ("app.css", "app.js", "job.js", "icons.svg", "sign.svg", "vendor/htmx.min.js", "vendor/hx-sse.min.js")
    shown += ("vendor/uPlot.iife.min.js", "vendor/uPlot.min.css")
    assert sum(len(assets()[name].compressed) for name in shown) <= MAX_ASSETS
    answer = site.client.get(f"/static/app.css?v={assets()['app.css'].tag}")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(assets()["app.css"].compressed) == assets()["app.css"].plain
    assert site.client.get("/static/../auth.py").status_code == 404
    assert site.client.get("/static/vendor.py").status_code == 404


def test_the_form_says_which_field_is_wrong_and_keeps_the_others(site):
    """Guards: with the list of faults always shown, one fault was told twice; without `wrong` no field was marked."""
    log_in(site)
    sent = {"name": "kept", "base_model": "org/small", "max_steps": "ten", "more": "lora_r: 4"}
    answer = site.client.post("/submit", data=sent, headers=ORIGIN)
    assert answer.status_code == 422
    assert answer.text.count("&#39;ten&#39; is not a number") == 1
    assert answer.text.count("aria-invalid") == 1
    assert 'name="max_steps" value="ten" aria-invalid="true"' in answer.text
    assert 'value="kept"' in answer.text
    assert "lora_r: 4" in answer.text


def test_a_demo_that_cannot_be_made_says_why(site, monkeypatch):
    from tests.helpers.waiting import wait_for

    monkeypatch.setitem(sys.modules, "torch", None)  # Python's own way to say "absent"

    log_in(site)
    assert "Train a small model" in site.client.get("/", headers=HTML).text
    assert site.client.post("/demo", headers=ORIGIN).status_code == 303
    wait_for(lambda: site.admin.get("/demo").json()["stage"] == "failed", "the refusal")
    page = site.client.get("/", headers=HTML).text
    assert "needs torch" in page
    assert "Try again" in page


def test_an_account_shows_what_its_last_check_found(site):
    log_in(site)
    with site.app.context.uow() as tx:
        (pool,) = tx.accounts.all()
        failed = {"name": "hub", "title": "downloads from Hugging Face", "status": "failed"}
        pool.image = {"cpu": {"at": 1_760_000_000.0, "image": "one", "probes": [failed]}}
        tx.accounts.save(pool)
    words = "checked on 9 October 2025: 0 of 1 probes ok; failed: downloads from Hugging Face"
    assert words in site.client.get("/accounts").text


def test_accounts_are_checked_agreed_to_and_paused(site):
    log_in(site)
    me = site.admin.get("/me").json()["id"]
    with site.app.context.uow() as tx:
        (pool,) = tx.accounts.all()
        mine = Account(id="account-mine", provider="fake", member_id=me, name="mine", config={}, created_at=0.0)
        mine.problem = "the token was <b>revoked</b>"
        tx.accounts.add(mine)
    page = site.client.get("/accounts").text
    assert "the token was &lt;b&gt;revoked&lt;/b&gt;" in page
    assert "Give consent" in page
    assert "this account needs no sign-in" in site.client.post(f"/accounts/{pool.id}/check", headers=ORIGIN).text
    assert site.client.post("/accounts/account-mine/consent", headers=ORIGIN).status_code == 303
    assert site.client.post(f"/accounts/{pool.id}", data={"paused": "true"}, headers=ORIGIN).status_code == 303
    page = site.client.get("/accounts").text
    assert "Give consent" not in page
    assert "Paused: no new sessions start here" in page


def test_what_is_left_of_a_quota_is_a_bar(site):
    """Guard: drawn from a setting of the account that nothing ever set, the bar never showed."""
    log_in(site)
    provider = site.app.context.providers.get("local")
    provider.rooms = dataclasses.replace(provider.rooms, hours_left=4.5, hours_total=30.0)
    page = site.client.get("/accounts").text
    assert '<progress class="low" value="4.5" max="30.0" aria-label="4.5 of 30 hours left">' in page


def test_a_queued_job_of_ones_own_can_be_taken_as_a_notebook(site, people):
    log_in(site)
    own, other = site.admin.submit()["id"], people.ann.submit()["id"]
    assert f"/jobs/{own}/notebook" in site.client.get(f"/jobs/{own}", headers=HTML).text
    assert f"/jobs/{other}/notebook" not in site.client.get(f"/jobs/{other}", headers=HTML).text
    taken = site.client.post(f"/jobs/{own}/notebook", headers=HTML | ORIGIN)
    assert taken.headers["content-disposition"] == "attachment; filename*=UTF-8''small.ipynb"
    assert taken.json()["nbformat"] == 4
    assert site.client.post(f"/jobs/{other}/notebook", headers=HTML | ORIGIN).status_code == 403


def test_a_notebook_opens_in_colab_where_a_drive_is_in_use(make_server, tmp_path, drive):
    app = make_server(f"sqlite:///{tmp_path / 'trainhop.db'}", drivers={"drive": {"endpoint": drive.url}})
    with TestClient(make_app(app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        site = Api(app=app, client=client)
        log_in(site)
        job = site.admin.submit()["id"]
        assert "Open in Colab" not in client.get(f"/jobs/{job}", headers=HTML).text
        site.admin.call("PUT", "/stores/drive", json={"credentials": json.dumps(drive.authorized_user())})
        assert "Open in Colab" in client.get(f"/jobs/{job}", headers=HTML).text
        shown = client.post(f"/jobs/{job}/notebook", data={"drive": "true"}, headers=HTML | ORIGIN).text
    (file,) = [f for f in drive.files() if f.title.endswith(".ipynb")]
    assert f'href="https://colab.research.google.com/drive/{file.id}"' in shown
    assert "Sign in to Google as somebody@example.com" in shown


def test_a_browser_knows_its_own_login_among_others(site):
    """Guards: without the name from `browser`, every login was called the same; without `current`, one's own was not
    marked."""
    site.client.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    log_in(site)
    site.client.headers["User-Agent"] = "curl/8"
    log_in(site)
    site.client.headers["User-Agent"] = "Mozilla/5.0 (iPhone; like Mac OS X) AppleWebKit/605 Version/18 Safari/604.1"
    log_in(site)
    names = [token["name"] for token in site.admin.get("/tokens").json()["items"]]
    assert {"browser, Firefox on Linux", "browser", "browser, Safari on iPhone"} < set(names)
    page = site.client.get("/people", headers=HTML).text
    assert page.count(">this browser<") == 1
    assert 'Safari on iPhone <span class="badge good">this browser' in page


def test_a_token_lasts_a_day_at_least(site):
    """Guards: with `ge=0` a token for 0 days had expired when it was made; without `except`, "soon" was a bug of the
    server."""
    log_in(site)
    for days, words in (("0", "must be at least 1"), ("soon", "must be a number")):
        refused = site.client.post("/tokens", data={"name": "x", "days": days}, headers=HTML | ORIGIN)
        assert (refused.status_code, words in refused.text) == (422, True)
    made = site.client.post("/tokens", data={"name": "x", "days": "1"}, headers=HTML | ORIGIN)
    assert "New token" in made.text
    assert ">1 d 0 h</time>" in made.text


def test_nothing_to_be_told_of_is_refused_and_what_was_typed_stays(site):
    """Guard: with all topics in place of none, whoever had unticked every one was told of everything."""
    log_in(site)
    sent = {"url": "https://example.org/hook", "topics": []}
    answer = site.client.post("/notifications", data=sent, headers=HTML | ORIGIN)
    assert answer.status_code == 422
    assert "No topic is selected" in answer.text
    assert 'value="https://example.org/hook"' in answer.text
    assert answer.text.count(" checked>") == 0
    assert site.admin.get("/notifications").json()["items"] == []
    wrong = site.client.post("/notifications", data={"url": "nonsense", "topics": "failed"}, headers=HTML | ORIGIN)
    assert wrong.text.count(" checked>") == 1


def test_a_job_that_ends_says_how_long_it_took_and_what_is_safe(site, provider, clock, tmp_path):
    """Guards: with the ledger's own seconds added up, a worker's boot was counted twice; with the tile always `safe`,
    "none yet" was green; with "paused" for whatever is not known, so was a job in the queue or cancelled."""
    log_in(site)
    job = site.admin.submit(max_steps=1)["id"]

    def shown() -> str:
        return site.client.get(f"/jobs/{job}", headers=HTML).text

    assert 'data-state="queued"' in shown()
    assert '<div class="tile"><dt>Last checkpoint</dt><dd>none yet<small>nothing saved' in shown()
    machine = Machine.launched(site, provider)
    clock.tick(30)
    machine.start()
    clock.tick(70)
    machine.report(1, ledger={"boot": 90.0, "train": 10.0})
    machine.save(1, tmp_path)
    assert '<div class="tile safe"><dt>Last checkpoint</dt>' in shown()
    assert machine.finish(1).status_code == 204
    assert "1 step, 1 min 40 s after submission" in shown()
    assert '<div class="tile"><dt>Last checkpoint</dt>' in shown()  # the verdict is what counts now
    other = site.admin.submit()["id"]
    site.client.post(f"/jobs/{other}/cancel", headers=ORIGIN)
    assert 'data-state="cancelled"' in site.client.get(f"/jobs/{other}", headers=HTML).text


def test_one_row_is_one_row(site):
    """Guards: without `many` it was "1 rows"; the reason why no tokens are shown ended in the name of a Python
    class."""
    log_in(site)
    data = site.admin.upload(b'{"text": "a"}\n').json()["sha256"]
    shown = site.client.post(f"/submit/data/{data}", data={"base_model": "org/nowhere"}, headers=ORIGIN | HTML).text
    assert " · 1 row · about 1 token<" in shown.replace("</p>", "<")
    assert "tokenizer is not on this computer)." in shown
