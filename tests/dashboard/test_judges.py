"""The page of judge models in a browser: accessible, on a phone, and without JavaScript."""

from __future__ import annotations

from orchestrator.services.judging import work
from tests.dashboard.test_browser import _axe
from tests.emulators.judge import JudgeEmulator, always
from tests.helpers.evaluations import add_evaluation


def test_the_page_of_judges_is_accessible_fits_and_needs_no_script(show, visit) -> None:
    admin = show.api.admin
    job = admin.submit(name="evaluated")["id"]
    add_evaluation(show.app.context.uow, job, 30, owner=admin.get("/me").json()["id"], same=2)
    home = f"{show.url}/evaluations/{job}/judge"
    with JudgeEmulator() as judge:
        judge.model, judge.conduct = "a-judge-model-with-a-long-name-" * 3, always("first")
        page = visit(show.link(), java_script_enabled=False, width=360)
        page.goto(home)
        page.get_by_label("Name", exact=True).fill("house")
        page.get_by_label("Model").fill(judge.model)
        page.get_by_label("Address").fill(judge.url)
        page.get_by_label("I agree that prompts").check()
        page.get_by_role("button", name="Try and add").click()
        page.get_by_label("Budget in tokens").fill("3000")
        page.get_by_role("button", name="Start").click()
        page.get_by_role("button", name="Pause").wait_for()
        (found,) = admin.get(f"/evaluations/{job}/judgements").json()["items"]
        work(show.app.judging, found["id"])
        page.goto(home)
        page.get_by_label("Budget in tokens").first.fill("90000")
        page.get_by_role("button", name="Resume").click()
        work(show.app.judging, found["id"])
        page.goto(home)
        page.get_by_text("Advice: ask people").wait_for()
        for scheme, width in (("light", 1280), ("dark", 360)):
            seen = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)
            seen.goto(home)
            assert _axe(seen) == []
            assert seen.evaluate("document.documentElement.scrollWidth <= innerWidth")
