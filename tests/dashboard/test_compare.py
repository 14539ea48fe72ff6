"""Jobs ticked in the list and compared, in a real browser."""

from __future__ import annotations

from tests.dashboard.test_browser import _axe, until
from tests.helpers.page_server import PageServer, steps

WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
UPDATES = """(updates) => new Promise((done) => requestAnimationFrame(() => {
  const {compare} = trainhop, before = compare.draws;
  for (let i = 0; i < updates; i++) compare.show({...compare.found});
  requestAnimationFrame(() => requestAnimationFrame(() => done(compare.draws - before)));
}))"""


def two_jobs(show: PageServer) -> list[str]:
    """Two jobs that train, one of them with a long name and a note, and one that waits."""
    made: list[str] = []
    for name, rank in (("a long name of a run " * 9, 8), ("second", 16)):
        made.append(show.api.admin.submit(name=name, max_steps=30, lora_r=rank)["id"])
        steps(show.machine(), 1, 30, total=30, reading={"rss_bytes": 2**30})
    show.api.admin.call("PUT", f"/jobs/{made[0]}/note", json={"note": "a note that is long " * 20})
    show.api.admin.post("/jobs?tag=sweep", show.api.admin.job_file(name="waits"))
    for job in made:
        show.api.admin.call("PUT", f"/jobs/{job}/tags", json={"tags": ["sweep"]})
    return made


def test_ticked_jobs_are_compared(show, visit):
    """Guards: without `if (frame) return` 20 updates were 20 drawings; with the chart drawn for each new answer only, a
    change of the colour scheme left the colours of the other one."""
    jobs = two_jobs(show)
    page = visit(show.link())
    for job in jobs:
        page.locator(f"[id='{job}'] input").check()
    show.api.admin.submit(name="new")  # the list shows it when it has been read again
    page.get_by_role("link", name="new", exact=True).wait_for()
    assert page.locator("input[name=job]:checked").count() == 2
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Compare 2 jobs").wait_for()
    until(page, "trainhop.compare?.chart?.data[1].length === 30")
    assert "second 2.644 to 0.6886" in page.locator("#overlay").get_attribute("aria-label")
    assert page.evaluate(UPDATES, 20) == 1
    page.get_by_text("gradient norm").click()
    until(page, "trainhop.compare.found.metric === 'grad_norm'")
    page.get_by_text("Values as a table").click()
    assert page.locator("#values tbody tr").count() >= 10
    stroke = "trainhop.compare.chart.series[1]._stroke"
    light = page.evaluate(stroke)
    page.emulate_media(color_scheme="dark")
    until(page, f"{stroke} !== '{light}'")
    page.goto(show.url)
    page.get_by_label("Tick second").check()
    page.get_by_role("textbox", name="Tag").fill("best")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Tag: 1 of 1 job").wait_for()
    page.goto(show.url)
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.get_by_label("Tick second").check()
    page.get_by_role("button", name="Cancel").click()
    assert show.api.admin.get(f"/jobs/{jobs[1]}").json()["requests"]["cancel"] is False


def test_lists_and_comparisons_are_accessible_and_fit(show, visit):
    jobs = two_jobs(show)
    page = visit(show.link(), bypass_csp=True)
    for path in ("/", "/?tag=sweep&sort=-loss", f"/compare?job={jobs[0]}&job={jobs[1]}"):
        page.goto(show.url + path)
        if path.startswith("/compare"):
            until(page, "trainhop.compare?.chart")
        for scheme, width in (("light", 1440), ("dark", 1024), ("light", 390)):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(WIDE) is False, (path, width)
            assert _axe(page) == [], (path, scheme)
