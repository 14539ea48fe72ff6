"""Cloning from a checkpoint in a real browser."""

from __future__ import annotations

from tests.dashboard.test_browser import journey


def test_a_checkpoint_is_cloned_from_its_row(show, visit, tmp_path):
    """Both pages tell of each other; what the checkpoint depends on cannot be changed, neither in a field nor in the
    YAML."""
    origin, _ = journey(show, tmp_path)
    page = visit(show.link(), tolerate=("422",))  # the refused form is answered so
    page.goto(f"{show.url}/jobs/{origin}")
    page.get_by_role("link", name="clone from step 20").click()
    page.get_by_text("ends in the same bytes as the original").wait_for()
    for label in ("Base model", "Global batch", "Maximum sequence length (tokens)", "Adapter"):
        assert page.get_by_label(label).get_attribute("readonly") is not None
    page.locator("#plan").get_by_text("40", exact=True).or_(page.locator("#plan dd").get_by_text("40")).first.wait_for()
    page.get_by_label("Name", exact=True).fill("<b>gone on</b>")
    page.get_by_label("Steps (instead of epochs)").fill("80")
    page.locator("textarea[name=more]").fill("seed: 7")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("it changes the order of rows").wait_for()
    page.locator("textarea[name=more]").fill("eval_steps: 10")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("heading", name="<b>gone on</b>").wait_for()
    page.get_by_text(f"cloned from {origin} at step 20").wait_for()
    page.locator("#status").get_by_text("20 / 80").wait_for()
    page.locator("#events").get_by_text(f"as a clone of {origin} from step 20").wait_for()
    page.get_by_role("link", name=origin).first.click()
    page.get_by_text("Clones: <b>gone on</b> from step 20").wait_for()
    page.locator("#events").get_by_text("from step 20").wait_for()
