"""The pages in a real browser, over machines that tests drive by hand."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from sqlalchemy import text

from benchmarks.page_checks import axe as _axe
from orchestrator.ports.providers import Liveness
from tests.helpers.page_server import PageServer, page_server, steps
from tests.helpers.waiting import wait_for

CURVE = "window.trainhop?.curve?.state.series.loss?.length ?? 0"
MARKS = "trainhop.curve.marks().map((m) => m.step)"


def until(page, expression: str) -> None:
    """Wait for a JavaScript expression; Playwright's own way needs `eval`, which our policy forbids."""
    wait_for(lambda: page.evaluate(expression), expression)


XSS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)//",
    "</title><svg onload=alert(1)>",
    "<hx-partial hx-target='#main'>x</hx-partial>",
    "\u202egnp.exe",
    "'; hx-on::load='alert(1)",
]


def journey(show: PageServer, tmp_path, *, total: int = 60, **spec):
    """A job in its second session: 20 steps, a hand-off, then up to step 30."""
    job = show.api.admin.submit(max_steps=total, **spec)
    first = show.machine()
    steps(first, 1, 20, total=total)
    assert first.save(20, tmp_path).json()["committed"]
    assert first.say("release", first.said("release", step=20, reason="deadline")).status_code == 204
    second = show.machine()
    steps(second, 21, 30, total=total, reading={"cpu_percent": 90.0, "rss_bytes": 2**30})
    steps(second, 31, 31, total=total, reading={"cpu_percent": 95.0, "rss_bytes": 2**30})
    return job["id"], second


def test_a_watched_job_moves_on_by_itself_and_the_hand_off_is_marked(show, visit, tmp_path):
    """Guards: without merging by step a repeated step stood there twice; without `since` reading the later session's
    first step, the steps that a lost machine had run kept their old values until a reload."""
    ident, machine = journey(show, tmp_path)
    page = visit(show.link())
    page.get_by_role("link", name="small").click()
    until(page, f"({CURVE}) === 31")
    assert page.evaluate(MARKS) == [20]
    assert "hand-offs after step 20" in page.locator("#curve").get_attribute("aria-label")
    page.get_by_text("on this-computer, test cpu · train").wait_for()
    assert "52 %" in page.title() or "51 %" in page.title()
    assert "percent=51" in page.locator("#favicon").get_attribute("href")

    steps(machine, 32, 40, total=60)
    until(page, f"({CURVE}) === 40")
    page.get_by_text("40 / 60").wait_for()

    machine.save(35, tmp_path)
    page.locator("#checkpoints").get_by_text("head").wait_for()
    page.get_by_text("5 steps").wait_for()
    show.provider.liveness[machine.lease] = Liveness.ENDED
    show.reconcile()
    page.get_by_text("machine ended without a message").first.wait_for()
    third = show.machine()
    rows = [{"step": 36, "values": {"loss": 9.0}}]
    assert third.report(36, metrics=rows).status_code == 200
    until(page, "trainhop.curve.state.series.loss.find((r) => r[0] === 36)[1] === 9")
    assert page.evaluate(f"[{CURVE}, {MARKS}]") == [40, [20, 35]]

    steps(third, 36, 60, total=60)
    third.save(60, tmp_path)
    assert third.finish(60).status_code == 204
    page.locator("#status .pill.succeeded").wait_for()
    until(page, "document.title.startsWith('✓')")
    with page.expect_download() as arriving:
        page.get_by_role("link", name="Adapter").click()
    assert arriving.value.suggested_filename == f"{ident}-adapter.zip"
    before = page.evaluate("JSON.stringify(trainhop.curve.state.series.loss)")
    page.reload()
    until(page, f"({CURVE}) === 60")
    assert page.evaluate("JSON.stringify(trainhop.curve.state.series.loss)") == before


def test_a_restarted_server_goes_on_without_gaps_or_doubles(show, visit, tmp_path):
    """Guard: with the cursor left out of the events' ids, the stream began anew and the request below had no id to go
    on from."""
    ident, machine = journey(show, tmp_path)
    gone = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "ERR_CONNECTION_RESET", "network error", "Failed to fetch")
    page = visit(show.link(), tolerate=gone)
    page.goto(f"{show.url}/jobs/{ident}")
    until(page, f"({CURVE}) === 31")
    asked: list[str | None] = []
    page.on("request", lambda r: asked.append(r.headers.get("last-event-id")) if "/live" in r.url else None)
    steps(machine, 32, 33, total=60)
    until(page, f"({CURVE}) === 33")
    show.down()
    show.up()
    machine.api, machine.caller = show.api, show.api.as_(machine.caller.token)
    steps(machine, 34, 45, total=60)
    until(page, f"({CURVE}) === 45")
    found = page.evaluate("trainhop.curve.state.series.loss.map((r) => r[0])")
    assert found == list(range(1, 46))
    assert "2.33" in asked


def test_what_a_person_asks_is_seen_on_its_way(show, visit, tmp_path):
    """Seen failing without `morphIgnore`: what a person had opened was closed by the next piece of news."""
    ident, machine = journey(show, tmp_path)
    page = visit(show.link())
    page.goto(f"{show.url}/jobs/{ident}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("pause requested").first.wait_for()
    assert page.locator(".steps .reached").count() == 1
    assert machine.report(32).json()["action"] == "drain"
    page.locator(".steps .reached").nth(1).wait_for()
    machine.save(32, tmp_path)
    machine.say("release", machine.said("release", step=32, reason="paused"))
    page.locator("#status .pill.paused").wait_for()
    page.locator(".steps .reached").nth(2).wait_for()
    page.get_by_role("button", name="Resume").click()
    page.locator("#status .pill.queued").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    page.locator("#status .pill.cancelled").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.locator("#status .pill.queued").wait_for()
    page.get_by_text("Priority 0").click()
    page.get_by_label("Higher runs first").fill("7")
    show.api.admin.post(f"/jobs/{ident}:pause")
    page.locator("#status .pill.paused").wait_for()
    page.get_by_role("button", name="Set").click()
    page.get_by_text("Priority 7").wait_for()


def test_text_of_others_is_only_text(show, visit, tmp_path):
    """Guard: with `autoescape` off, the dialog of the first corpus entry opened on the list of jobs."""
    name = " ".join(XSS)[:200]
    show.api.admin.post("/members", {"name": XSS[0] + XSS[1]})
    show.api.admin.post("/tokens", {"name": XSS[1]})
    rows = "".join(f'{{"text": "{i} {text}"}}\n' for i, text in enumerate(x.replace('"', '\\"') for x in XSS)).encode()
    data = show.api.admin.upload(rows, name="<b>rows<img onerror=alert(1) src=x>.jsonl").json()["sha256"]
    job = show.api.admin.submit(
        name=name, max_steps=60, sample_prompts=XSS[:4], datasets=[{"path": f"sha256:{data}"}], base_model="org/small"
    )
    machine = show.machine()
    samples = [{"step": 1, "prompt": p, "text": " ".join(XSS)} for p in XSS[:4]]
    steps(machine, 1, 5, total=60, samples=samples)
    show.provider.logs[machine.lease] = ("\n".join(XSS) + "\n" + "x" * 1_000_000 + "\nend\n").encode()
    show.api.client.post(
        f"/api/v1/leases/{machine.lease}/release",
        json=machine.said("release", step=5, reason="deadline", detail=" ".join(XSS)),
        headers={"Authorization": f"Bearer {machine.caller.token}"},
    )
    page = visit(show.link())
    dialogs: list[str] = []
    page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
    ident = job["id"]
    for path in (
        "/",
        f"/jobs/{ident}",
        f"/jobs/{ident}/sessions/{machine.lease}",
        "/people",
        "/fleet",
        f"/submit?clone={ident}",
    ):
        page.goto(show.url + path)
        page.wait_for_load_state("load")
        assert page.evaluate("document.querySelectorAll('main script, main img[src=x], main svg[onload]').length") == 0
    page.locator(".row-preview").first.wait_for()
    assert "<script>alert(1)</script>" in page.locator("#preview").inner_text()
    assert page.evaluate("document.querySelectorAll('#preview img, #preview script').length") == 0
    page.goto(f"{show.url}/jobs/{ident}")
    assert XSS[0] in page.locator("h1").inner_text()
    assert "\u202e" not in page.locator("body").inner_text()
    page.goto(f"{show.url}/jobs/{ident}/sessions/{machine.lease}")
    page.get_by_text("more characters (see the raw output)").wait_for()
    assert dialogs == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_every_page_is_accessible_and_fits(show, visit, tmp_path, scheme, width):
    ident, machine = journey(show, tmp_path, sample_prompts=["Is there a train?"])
    show.api.admin.submit(name="waits")
    show.provider.logs[machine.lease] = b"step 1\nWarning: x\nTraceback (most recent call last)\n"
    # axe is injected as a script by the test, which the policy of our pages would refuse
    page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True, tolerate=("404", "410"))
    for path in (
        "/",
        f"/jobs/{ident}",
        f"/jobs/{ident}/sessions/{machine.lease}",
        "/fleet",
        "/accounts",
        "/submit",
        "/people",
        "/notifications",
        "/setup",
        "/setup?search=guide",
        "/nowhere",
        *_shared_pages(show, ident),
    ):
        page.goto(show.url + path)
        page.wait_for_load_state("load")
        if path == f"/jobs/{ident}":
            until(page, f"({CURVE}) === 31")
        if path.startswith(("/setup", "/accounts")):
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        _is_accessible_and_fits(page, path)
    page.goto(show.url + "/setup")
    begin_sign_in(page)
    _is_accessible_and_fits(page, "the sign-in")


def _is_accessible_and_fits(page, path: str) -> None:
    assert _axe(page) == [], path
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, path


CLIENT = {"client_id": "emulated-client.apps.googleusercontent.com", "client_secret": "emulated-client-secret"}


def begin_sign_in(page) -> str:
    """Begins a sign-in at Google Drive on the page of the steps. Returns the address where a person agrees."""
    if not page.locator("input[name=client]").is_visible():
        page.locator("summary").get_by_text("Google Drive", exact=True).click()
    file = {"name": "client.json", "mimeType": "application/json", "buffer": json.dumps({"installed": CLIENT}).encode()}
    page.set_input_files("input[name=client]", file)
    page.get_by_role("button", name="Sign in to Google Drive").click()
    return page.get_by_role("link", name="Continue to Google Drive").get_attribute("href")


def test_a_store_is_signed_in_to_without_a_script(visit, drive, tmp_path):
    """The browser is on another computer than the server, so the person pastes the address."""
    with page_server(tmp_path, drivers={"drive": {"endpoint": drive.url}}) as show:
        page = visit(show.link(), java_script_enabled=False)
        page.goto(show.url + "/setup")
        address = httpx.get(begin_sign_in(page), trust_env=False).headers["location"]
        page.get_by_text("The browser is on another computer").click()
        page.get_by_label("Full address of the page").fill(address)
        page.get_by_role("button", name="Finish").click()
        page.get_by_role("heading", name="Set up", exact=True).wait_for()
        page.locator("#step-store").get_by_text("Google Drive").wait_for()
        page.get_by_label("Cloud credentials").fill("any")
        page.get_by_role("button", name="Connect Cloud").click()
        page.get_by_text("signed in as somebody").wait_for()


def _shared_pages(show: PageServer, ident: str) -> list[str]:
    """The page of a link, and what stands there after the link was revoked."""
    kept, revoked = (show.api.admin.post(f"/jobs/{ident}/shares", {"samples": True}).json() for _ in range(2))
    show.api.admin.call("DELETE", f"/jobs/{ident}/shares/{revoked['id']}")
    return [link["url"][link["url"].index("/share/") :] for link in (kept, revoked)]


def test_a_shared_page_is_the_same_without_a_script(show, visit, tmp_path):
    """And the form on the job's page makes and revokes a link."""
    ident, _ = journey(show, tmp_path)
    page = visit(show.link(), java_script_enabled=False, tolerate=("410",))
    page.goto(f"{show.url}/jobs/{ident}")
    page.get_by_role("button", name="Make a link").click()
    link = page.locator("#secret").inner_text()
    page.goto(link)
    assert page.locator("svg.picture polyline").count() == 2
    page.goto(f"{show.url}/jobs/{ident}")
    page.get_by_role("button", name="Revoke").click()
    page.get_by_text("This link was revoked.").wait_for()
    page.goto(link)
    assert page.locator("main").inner_text().split("\n")[-1] == "This link was revoked."


def test_a_curve_of_any_axis_is_drawn(show, visit, tmp_path):
    """Guard: without the note, a second axis without values was an empty axis."""
    ident, _ = journey(show, tmp_path)
    page = visit(show.link())
    page.goto(f"{show.url}/jobs/{ident}")
    until(page, f"({CURVE}) === 31")
    for label in ("time", "machine time", "log scale", "step", "smoothed"):
        page.locator("#curve-tools").get_by_text(label, exact=True).click()
        drawn = page.evaluate("[...trainhop.curve.chart.data[0]]")
        assert len(drawn) >= 2
        assert drawn == sorted(drawn)
    for name, count in (("learning_rate", 31), ("grad_norm", 31), ("tokens_per_s", 31), ("memory", 2)):
        page.get_by_label("Second axis").select_option(name)
        until(page, f"trainhop.curve.state.series.{name}?.length === {count}")
        until(page, f"trainhop.curve.chart.data[5].filter((v) => v !== null).length === {count}")
    assert page.locator("#curve-note").inner_text() == ""
    with show.app.engine.begin() as connection:
        connection.execute(text("DELETE FROM readings"))
    page.reload()
    page.get_by_label("Second axis").select_option("memory")
    page.get_by_text("No values yet: memory, GiB.").wait_for()
    page.emulate_media(color_scheme="dark")
    until(page, "document.querySelector('#curve canvas') !== null")


def test_an_expired_login_is_said(show, visit, tmp_path):
    """Guard: without `noSwap` for 401, the table of jobs was replaced by the login page's words."""
    show.api.admin.submit()
    page = visit(show.link(), tolerate=("401",))
    page.get_by_role("link", name="small").wait_for()
    for token in show.api.admin.get("/tokens").json()["items"]:
        if token["name"].startswith("browser"):
            show.api.admin.call("DELETE", f"/tokens/{token['id']}")
    page.get_by_text("Your login has expired").wait_for()
    page.get_by_role("link", name="small").wait_for()
    page.goto(show.url + "/fleet")
    page.get_by_role("heading", name="You are not logged in").wait_for()


def test_without_a_script_pages_are_read_and_jobs_are_paused(show, visit, tmp_path):
    ident, _ = journey(show, tmp_path)
    page = visit(show.link(), java_script_enabled=False)
    page.goto(f"{show.url}/jobs/{ident}")
    text = page.locator("main").inner_text()
    for words in (
        "31 / 60",
        "At risk:",
        "this-computer",
        "The chart needs JavaScript",
        "checkpoint committed",
    ):
        assert words in text
    page.get_by_role("button", name="Pause").click()
    page.locator("#status").get_by_text("pause requested").first.wait_for()
    assert re.search(rf"/jobs/{ident}$", page.url)
    page.goto(show.url + "/submit?preset=instruct")
    page.set_input_files(
        "#file", {"name": "rows.jsonl", "mimeType": "text/plain", "buffer": b'{"text": "a"}\n{"text": "b"}\n'}
    )
    page.get_by_label("Name", exact=True).fill("by hand")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("heading", name="by hand").wait_for()


def test_a_file_that_was_chosen_before_the_script_came_is_sent(show, visit):
    """Seen failing without the look at what is chosen already: nothing happened, and nothing was said."""
    page = visit(show.link())
    page.route("**/submit.js*", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.goto(show.url + "/submit")
    page.set_input_files("#file", {"name": "quick.jsonl", "mimeType": "text/plain", "buffer": b'{"text": "a"}\n' * 3})
    page.unroute_all()
    page.add_script_tag(url=page.locator("script[src*='submit.js']").get_attribute("src"))
    page.locator("#preview").get_by_text("quick.jsonl").wait_for()


def test_a_job_is_made_from_a_file_that_is_looked_into(show, visit, tmp_path):
    page = visit(show.link())
    page.goto(show.url + "/submit?preset=instruct")
    bad = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n{"prompt": "d", "completion": ""}\n'
    page.set_input_files("#file", {"name": "bad.jsonl", "mimeType": "text/plain", "buffer": bad})
    page.get_by_text("line 2: column 'completion' is missing").wait_for()
    page.get_by_text("line 3: 'completion' is empty").wait_for()
    good = (
        b'{"prompt": "What is this?", "completion": "A train."}\n' * 12
        + b'{"prompt": "x", "completion": "%s"}\n' % (b"long " * 900)
    )
    page.set_input_files("#file", {"name": "good.jsonl", "mimeType": "text/plain", "buffer": good})
    page.locator("#preview").get_by_text("good.jsonl").wait_for()
    page.get_by_text("read as prompt_completion").wait_for()
    assert page.locator("#preview mark").nth(1).inner_text() == "A train."
    page.get_by_text("1 truncated").wait_for()
    page.get_by_text("11 duplicates").wait_for()
    page.locator("#plan").get_by_text("fits this-computer").wait_for()
    page.get_by_text("Would start immediately").wait_for()
    page.get_by_label("Epochs", exact=True).fill("nonsense")
    page.locator("#plan").get_by_text("is not a number").wait_for()
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_text("Other settings (YAML)").click()
    page.locator("textarea[name=more]").fill("eval_stepz: 3")
    page.locator("#plan").get_by_text("did you mean 'eval_steps'").wait_for()
    page.locator("textarea[name=more]").fill("eval_steps: 3")
    page.locator("#plan").get_by_text("rows to train on").wait_for()
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("heading", name="instruct").wait_for()
    assert "eval_steps: 3" in page.locator("#main pre").first.inner_text()


def test_members_and_tokens(show, visit):
    page = visit(show.link())
    page.goto(show.url + "/people")
    page.get_by_label("Name", exact=True).fill("ann")
    page.get_by_role("button", name="Invite").click()
    page.get_by_role("button", name="Login link for ann").click()
    link = page.locator("#secret").inner_text()
    hers = visit(link)
    hers.get_by_role("heading", name="No jobs yet").wait_for()
    hers.goto(show.url + "/people")
    hers.get_by_role("heading", name="Your tokens").wait_for()
    hers.get_by_label("Token name").fill("laptop")
    hers.get_by_role("button", name="Create").click()
    token = hers.locator("#secret").inner_text()
    assert show.api.as_(token).get("/me").json()["name"] == "ann"


@pytest.mark.parametrize("early", [True, False])
def test_a_job_that_goes_away_while_it_is_watched_is_said(show, visit, early):
    """Just before the page begins to listen, and while it listens.

    Guard: without `job.gone` the page went on showing a job that no longer was; while an answer of 404 was heard before
    its own text was put in place, the early one was overwritten.
    """

    def vanish():
        with show.app.engine.begin() as connection:
            connection.execute(text("DELETE FROM jobs"))

    job = show.api.admin.submit()["id"]
    page = visit(show.link(), tolerate=("404", "410"))
    if early:
        page.route("**/live?*", lambda route: (vanish(), route.continue_()))
    page.goto(f"{show.url}/jobs/{job}")
    if not early:
        page.get_by_text("No loss yet. The job waits for a machine.").wait_for()
        vanish()
    page.get_by_text("This job was deleted").wait_for()


def test_a_stream_that_slept_for_long_loads_the_curve_again(show):
    """Guard: without the limit, a browser that woke up was sent every point it had missed, one by one."""
    job = show.api.admin.submit(max_steps=9_000)["id"]
    machine = show.machine()
    steps(machine, 1, 3, total=9_000)
    more = (
        "WITH RECURSIVE s(step) AS (SELECT 4 UNION ALL SELECT step + 1 FROM s WHERE step < 8000) "
        f"INSERT INTO metrics (job_id, name, step, value, fence, at) SELECT '{job}', 'loss', step, 1.0, 1, 2e9 FROM s"
    )
    with show.app.engine.begin() as connection:
        connection.execute(text(more))
    machine.report(8000, metrics=[])

    def first(cursor: str) -> list[str]:
        headers = {"Authorization": f"Bearer {show.api.admin_token}", "Last-Event-ID": cursor}
        found: list[str] = []
        with show.client.stream("GET", f"/jobs/{job}/live", headers=headers) as stream:
            for line in stream.iter_lines():
                if line.startswith(("event:", "id:")):
                    found.append(line.replace(": ", ":"))
                if len(found) == 2:
                    return found
        return found

    assert first("1.3") == ["event:reload", "id:1.8000"]
    assert first("1.7990") == ["event:points", "id:1.8000"]
