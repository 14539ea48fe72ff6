"""Pages as a designer sees them: what leads, what a colour and a label mean, what fits."""

from __future__ import annotations

from html import unescape

import pytest
from sqlalchemy import text

from benchmarks.page_checks import clipped
from orchestrator.entrypoints.dashboard.assets import FOLDER
from orchestrator.ports.providers import Liveness
from tests.dashboard.test_browser import CURVE, until
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.helpers.page_server import steps
from tests.http.http_client import Machine, People
from tests.http.test_models import trained

LABELS = "trainhop.curve.labels.map(({text, x, y, width, height}) => [text, x, y, x + width, y + height])"


@pytest.fixture
def people(site) -> People:
    return People.of(site)


def place(page: str, *parts: str) -> list[int]:
    return [page.index(part) for part in parts]


def test_a_job_that_is_done_leads_with_its_result(site, people, provider, tmp_path):
    """Guard: with the history first, the adapter and its evaluation came after a screen of curve and sessions."""
    log_in(site)
    job = trained(site, site.admin, provider, tmp_path)
    done = site.client.get(f"/jobs/{job}", headers=HTML).text
    parts = ("Not evaluated yet", f"{job}-adapter.zip", 'id="chat"', 'id="exports"', 'id="evaluation"', 'id="curve"')
    assert place(done, *parts, 'id="sessions"') == sorted(place(done, *parts, 'id="sessions"'))
    waiting = site.client.get(f"/jobs/{site.admin.submit()['id']}", headers=HTML).text
    assert place(waiting, 'id="curve"', 'id="sessions"', 'id="evaluation"') == sorted(
        place(waiting, 'id="curve"', 'id="sessions"', 'id="evaluation"')
    )


def test_a_job_that_failed_leads_with_the_reason_and_can_be_edited(site, people, provider):
    """Guards: without `failed` in `job_status.html` the reason was one of many words beside the state; without the
    link, one had to copy the job's file to change a key."""
    log_in(site)
    job = site.admin.submit(name="was-wrong", learning_rate=0.5)["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    failure = {"message": "the loss is <not> a number", "permanent": True}
    assert machine.say("finish", machine.said("finish", step=0, failure=failure)).status_code == 204
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    reason, state = place(page, "<b>Failed</b>: the loss is &lt;not&gt; a number", 'class="pill failed"')
    assert reason < state
    assert f'<a class="button" href="/submit?clone={job}">' in page
    form = site.client.get(f"/submit?clone={job}", headers=HTML).text
    assert 'name="learning_rate" value="0.5"' in form
    data = site.admin.get(f"/jobs/{job}").json()["spec"]["datasets"][0]["sha256"]
    values = {"clone": job, "name": "mended", "base_model": "org/small", "max_steps": "3", "data": data}
    sent = site.client.post("/submit", data=values | {"learning_rate": "0.001"}, headers=ORIGIN)
    assert sent.status_code == 303
    made = site.admin.get(sent.headers["location"]).json()
    assert (made["cloned_from"], made["spec"]["learning_rate"]) == (job, 0.001)


def test_a_job_that_waits_says_why_and_until_when(site, people, provider, clock):
    """Guard: without `waiting` above the state, it was a line beside it, with a time that one had to add up."""
    log_in(site)
    until_then = clock.now() + 30 * 3600
    no_quota = {"hours_left": 0.0, "hours_total": 30.0, "refresh_at": until_then}
    provider.rooms = type(provider.rooms)(slots=1, session_s=3600.0, **no_quota)
    job = site.admin.submit()["id"]
    found = site.admin.get(f"/jobs/{job}").json()["waiting"]
    page = unescape(site.client.get(f"/jobs/{job}", headers=HTML).text)
    lead = page[page.index("<b>Waiting</b>") : page.index('class="pill queued"')]
    assert found["reason"] in lead
    assert "which is in <time" in lead
    assert ", " in lead[lead.index("Until") :], "a time of another day has its date"


def test_logins_of_one_kind_of_browser_are_one_row(site, people):
    """Guard: without `_grouped`, whoever logged in daily had a page of rows that say "browser"."""
    for agent in ("curl/8", "curl/8", "curl/8", "Mozilla/5.0 (X11; Linux) Firefox/140.0"):
        site.client.headers["User-Agent"] = agent
        log_in(site)
    page = site.client.get("/people", headers=HTML).text
    assert "3 logins, the newest first" in page
    assert page.count(">this browser<") == 1
    tokens = {t["id"]: t["name"] for t in site.admin.get("/tokens").json()["items"]}
    same = [ident for ident, name in tokens.items() if name == "browser"]
    assert all(f'name="token" value="{ident}"' in page for ident in same)
    assert site.client.post("/tokens/revoke", data={"token": same}, headers=ORIGIN).status_code == 303
    assert not set(same) & {t["id"] for t in site.admin.get("/tokens").json()["items"]}
    log_in(site, people.ann)
    (other,) = (ident for ident, name in tokens.items() if name.startswith("browser, Firefox"))
    refused = site.client.post("/tokens/revoke", data={"token": other}, headers=ORIGIN)
    assert refused.status_code in (403, 404)


def test_the_page_of_notifications_says_what_is_on(site):
    """Guard: without `active`, one had to read each channel to know that nothing would come."""
    log_in(site)
    assert "Notifications are off: you have no channel." in site.client.get("/notifications").text
    site.admin.post("/notifications", {"url": "https://example.org/hook", "topics": ["failed"]})
    page = site.client.get("/notifications").text
    told = page[page.index("Messages to you") : page.index("Add a channel")]
    assert told.count(">off<") == 6
    assert told.count('class="badge good"') == 1
    with site.app.engine.begin() as connection:
        connection.execute(text("UPDATE channels SET active = :off"), {"off": False})
    assert "every channel was disabled after failed deliveries" in site.client.get("/notifications").text


def test_the_output_shows_the_numbers_of_its_lines(site, people, provider):
    """Guards: with byte offsets in the gutter nobody found "line 12"; without `_first_number` a page that begins later
    counted from 1."""
    log_in(site)
    job = site.admin.submit()["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    provider.logs[machine.lease] = b"one\ntwo\nthree\nfour\n"
    path = f"/jobs/{job}/sessions/{machine.lease}"
    assert 'aria-label="Link to line 3">3</a><span>three' in site.client.get(path).text
    later = site.client.get(f"{path}?at=8").text
    assert '">3</a><span>three' in later
    assert 'to line 1"' not in later
    assert "number=5" in later
    more = site.client.get(f"{path}/more?at=14&number=4").text
    assert '">4</a><span>four' in more
    assert '">4</a><span>four' in site.client.get(f"{path}?search=four").text


def test_parts_of_every_table_have_their_roles(site, people):
    """Guard: without `TableRoles` a table whose rows are cards was plain text for a screen reader."""
    log_in(site)
    page = site.client.get("/people", headers=HTML).text
    for tag, role in (("table", "table"), ("thead", "rowgroup"), ("tr", "row"), ("td", "cell"), ("tbody", "rowgroup")):
        assert page.count(f"<{tag} ") + page.count(f"<{tag}>") == page.count(f'<{tag} role="{role}"')
    assert 'scope="row" role="rowheader"' in page
    assert 'scope="col" role="columnheader"' in page


def test_scripts_have_no_text_of_several_lines():
    """`assets.slim` would change it."""
    for file in FOLDER.glob("*.js"):
        for line in file.read_text().splitlines():
            assert line.count("`") % 2 == 0, (file.name, line)


def lose(show, machine) -> None:
    """The machine is gone without a message."""
    show.provider.liveness[machine.lease] = Liveness.ENDED
    show.reconcile()


def test_lost_machines_beside_each_other_keep_their_labels(show, visit, tmp_path):
    """Guard: with one row of labels, a mark without room before its neighbour lost its label."""
    job = show.api.admin.submit(max_steps=200)["id"]
    for first in (1, 4, 5, 7, 9):
        machine = show.machine()
        steps(machine, first, first + 2, total=200)
        machine.save(first + 2, tmp_path)
        lose(show, machine)
    steps(show.machine(), 12, 150, total=200)
    page = visit(show.link())
    page.goto(f"{show.url}/jobs/{job}")
    until(page, f"({CURVE}) === 150")
    until(page, "trainhop.curve.labels.length === 5")
    labels = page.evaluate(LABELS)
    assert all("machine lost" in label[0] for label in labels)
    boxes = [label[1:] for label in labels]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, "two labels overlap"


def test_the_chart_tells_values_at_the_cursor_and_why_it_is_empty(show, visit, tmp_path):
    """Guards: without `sayEmpty` a job in the queue had a chart from 0 to 1; without `tell` a value had to be guessed
    from the axis."""
    job = show.api.admin.submit(max_steps=60)["id"]
    page = visit(show.link())
    page.goto(f"{show.url}/jobs/{job}")
    page.get_by_text("No loss yet. The job waits for a machine.").wait_for()
    assert page.locator(".uplot").count() == 0
    assert not page.locator("#curve-tools").is_visible()
    steps(show.machine(), 1, 40, total=60)
    until(page, f"({CURVE}) === 40")
    page.locator("#curve-tools").wait_for()
    assert [page.evaluate(f"trainhop.curve.chart.axes[{n}].label") for n in (0, 1)] == ["step", "loss"]
    box = page.locator("#curve .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    told = page.locator(".tip")
    told.wait_for()
    lines = told.inner_text().splitlines()
    assert lines[0].startswith("step 2")
    assert [line.split()[0] for line in lines[1:3]] == ["loss", "smoothed"]
    assert lines[-1] == "session 1, this-computer test cpu"


@pytest.mark.parametrize("width", [1024, 390])
def test_nothing_is_clipped_and_rows_are_cards_where_there_is_no_room(show, visit, tmp_path, width):
    """Guards: without the roles and `@container`, a phone showed the left half of each table. The wide matrix is in
    `python -m benchmarks.front_door --only pages`."""
    long = "a name that is longer than any column of a table can be " * 3
    show.api.admin.post("/members", {"name": long[:100]})
    job = show.api.admin.submit(name=long, max_steps=60)["id"]
    machine = show.machine()
    steps(machine, 1, 20, total=60, reading={"cpu_percent": 90.0, "rss_bytes": 2**30})
    steps(machine, 21, 22, total=60, reading={"cpu_percent": 95.0, "rss_bytes": 2**30})
    machine.save(20, tmp_path)
    show.api.admin.submit(name="waits " + long)
    page = visit(show.link(), width=width)
    for path in (f"/jobs/{job}", "/fleet", "/people", "/notifications"):
        page.goto(show.url + path)
        page.wait_for_load_state("load")
        assert clipped(page) == [], path
    page.goto(show.url + "/fleet")
    cell = page.get_by_role("cell").filter(has_text="this-computer").first
    shown = cell.evaluate("(e) => getComputedStyle(e).display")
    assert shown == ("block" if width == 390 else "table-cell")
    assert page.get_by_role("table").count() == 2
    assert page.locator("figure.spark .y").first.inner_text().endswith("%")
    assert page.locator(f"th [title='{long.strip()}']").count() == 1
