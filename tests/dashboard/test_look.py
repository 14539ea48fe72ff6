"""How the pages look, measured in a real browser: nothing covered, unseen, cut apart or as high as a page."""

from __future__ import annotations

from tests.dashboard.test_browser import CURVE, _axe, journey, until
from tests.helpers.page_server import steps

SEEN = """(() => {
  const {canvas} = trainhop.curve.chart.ctx;
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = [0x1f, 0x5f, 0xd0];
  for (let i = 0; i < data.length; i += 4)
    if (data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255) return true;
  return false;
})()"""
COVERED = """[...document.querySelectorAll(".copyable")].filter((box) => {
  const button = box.querySelector(".copy").getBoundingClientRect(), text = document.createRange();
  text.selectNodeContents(box.querySelector("pre, .secret"));
  const covers = (r) => r.width && r.right > button.left && r.top < button.bottom && r.bottom > button.top;
  return button.width && [...text.getClientRects()].some(covers);
}).length"""


def test_the_only_point_of_a_curve_is_seen(show, visit):
    """Guard: without `lone` the chart of a job that had reported one step was empty."""
    job = show.api.admin.submit(max_steps=9)["id"]
    steps(show.machine(), 1, 1, total=9)
    page = visit(show.link(), tolerate=("Canvas2D",))  # which is read more than once
    page.goto(f"{show.url}/jobs/{job}")
    until(page, f"({CURVE}) === 1")
    until(page, SEEN)


def test_nothing_lies_over_what_is_read_or_focused(show, visit, tmp_path):
    """Guards: without `scroll-padding-top` the focus went under the head; without `padding-right` the button to copy
    covered the end of the first line; without `max-height` an answer of blank lines was higher than the page."""
    ident, machine = journey(show, tmp_path, sample_prompts=["Is there a train?"], name="long " * 39)
    steps(
        machine,
        32,
        32,
        total=60,
        samples=[{"step": 32, "prompt": "Is there a train?", "text": "No." + "\n" * 200 + "."}],
    )
    page = visit(show.link(), bypass_csp=True)
    page.goto(f"{show.url}/jobs/{ident}")
    until(page, f"({CURVE}) === 32")
    page.get_by_text("as curl").click()
    assert page.evaluate(COVERED) == 0
    assert page.locator("blockquote").first.bounding_box()["height"] < 400
    assert _axe(page) == []
    pause = page.get_by_role("button", name="Pause")
    pause.evaluate("(button) => scrollBy(0, button.getBoundingClientRect().top - 20)")
    head = page.locator(".top").bounding_box()
    assert pause.bounding_box()["y"] < head["height"]
    pause.focus()
    assert pause.bounding_box()["y"] >= head["y"] + head["height"]


def test_long_names_fit_and_times_are_not_cut_apart(show, visit):
    """Guards: without `anywhere` a name of 100 letters made the table wider than its card; without `nowrap` times were
    broken in two; without a colour of its own a placeholder was as pale as the browser has it."""
    show.api.admin.post("/members", {"name": "w" * 100})
    show.api.admin.post("/tokens", {"member": "w" * 100, "name": "n" * 100})
    page = visit(show.link())
    page.goto(show.url + "/people")
    wide = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert page.evaluate(wide) == 0
    page.set_viewport_size({"width": 360, "height": 900})
    assert (
        page.evaluate("[...document.querySelectorAll('time')].filter((e) => e.getClientRects().length > 1).length") == 0
    )
    pale = "getComputedStyle(document.querySelector('[name=days]'), '::placeholder').color"
    assert page.evaluate(pale) == page.evaluate("getComputedStyle(document.querySelector('.fields label')).color")


def test_a_tab_says_how_its_job_is(show, visit):
    """Guard: with one sign for whatever is not known, a tab said of a job in the queue and of a cancelled one:
    paused."""
    job = show.api.admin.submit(name="tabbed")["id"]
    page = visit(show.link())
    page.goto(f"{show.url}/jobs/{job}")
    until(page, "document.title === '… tabbed'")
    assert "state=queued" in page.locator("#favicon").get_attribute("href")
    show.api.admin.post(f"/jobs/{job}:pause")
    until(page, "document.title === '⏸ tabbed'")
    show.api.admin.post(f"/jobs/{job}:cancel")
    until(page, "document.title === '⏹ tabbed'")
