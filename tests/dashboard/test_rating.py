"""The page of a rater: votes by click, by key, on a phone and without a script; words of models are text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.dashboard.test_browser import XSS, _axe
from tests.helpers.evaluations import add_evaluation
from tests.helpers.page_server import PageServer

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": f"Hello {XSS[0]}"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who wrote this? " + "long" * 2_000},
]


def start(show: PageServer) -> str:
    """The path of a new comparison's API."""
    admin = show.api.admin
    job = admin.submit()["id"]
    texts: dict[str, Any] = {"base": f"One \u202e\x07 {XSS[1 % len(XSS)]}", "adapter": "Other " + "word" * 2_000}
    owner = admin.get("/me").json()["id"]
    add_evaluation(show.app.context.uow, job, 30, owner=owner, prompt=TURNS, **texts)
    return f"/comparisons/{admin.post(f'/evaluations/{job}/comparisons', {}).json()['id']}"


def link(show: PageServer, path: str, name: str = "Ann") -> str:
    return show.api.admin.post(f"{path}/raters", {"name": name}).json()["url"]


def rated(show: PageServer, path: str) -> tuple[int, int]:
    found = show.api.admin.get(path).json()
    return found["ratings"], found["ties"]


@pytest.fixture
def rater(show, visit):
    """Opens a rater's page in a browser that is logged in nowhere else: `rater(link, width=360)`."""

    def open_page(url: str, **more):
        page = visit(show.link(), **more)
        page.context.clear_cookies()
        page.goto(url)
        page.get_by_role("button", name="Start").click()
        page.get_by_role("heading", name="Answer 1").wait_for()
        return page

    return open_page


def test_votes_are_given_with_keys(show, rater):
    """Guard: without the look at the target, an arrow in a note voted."""
    path = start(show)
    page = rater(link(show, path), tolerate=("409 (Conflict)",))
    assert page.evaluate("document.querySelectorAll('main script, main img[src=x], main svg[onload]').length") == 0
    assert "\u202e" not in page.locator("body").inner_text()
    assert page.locator("nav").count() == 0
    page.get_by_label("Sources").fill("https://a.example")
    page.get_by_label("Sources").press("ArrowLeft")
    page.get_by_label("Sources").press("t")
    assert rated(show, path) == (0, 0)
    for count, key in enumerate(("ArrowLeft", "ArrowRight", "t", "ArrowDown"), 1):
        page.locator("h1").click()
        page.keyboard.press(key)
        page.get_by_text(f"{count} prompt{'s' * (count > 1)} rated").wait_for()
    show.api.admin.post(f"{path}:close")
    votes = [line["choice"] for line in map(json.loads, show.api.admin.get(f"{path}/votes").text.splitlines())]
    assert votes == ["1", "2", "tie", "tie"]
    page.keyboard.press("t")
    page.get_by_text("This comparison is closed. Your earlier votes are kept.").wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_the_pages_of_a_comparison_are_accessible_and_fit(show, visit, scheme, width):
    path = start(show)
    first, second = link(show, path), link(show, path, "Ben " + "x" * 60)
    job = show.api.admin.get(path).json()["evaluation"]
    page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)

    def check(what: str) -> None:
        page.wait_for_load_state("load")
        assert _axe(page) == [], what
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, what

    page.goto(first)
    check("the link")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("heading", name="Answer 2").wait_for()
    check("a prompt")
    page.get_by_role("button", name="Tie").click()
    page.get_by_text("1 prompt rated").wait_for()
    page.goto(second)
    page.goto(f"{show.url}/evaluations/{job}/comparisons")
    check("the owner's page")
    page.get_by_label("Name of a rater").fill("Cy")
    page.get_by_role("button", name="Make a link").click()
    page.get_by_role("heading", name="Link for Cy").wait_for()
    check("a new link")
    show.api.admin.post(f"{path}:close")
    page.goto(f"{show.url}/evaluations/{job}/comparisons")
    page.get_by_text("Not enough evidence").wait_for()
    check("the result")


def test_votes_are_given_without_a_script_on_a_phone(show, rater):
    path = start(show)
    address = link(show, path)
    page = rater(address, java_script_enabled=False, width=360)
    context = page.context
    page.get_by_label("Sources").fill("by hand")
    page.get_by_role("button", name="Answer 1").click()
    page.get_by_text("1 prompt rated").wait_for()
    url = page.url
    page.close()
    page = context.new_page()
    page.goto(address)
    page.get_by_text("This link was opened already").wait_for()
    page.get_by_role("link", name="Continue").click()
    page.wait_for_url(url)
    page.get_by_role("button", name="Tie").click()
    page.get_by_text("2 prompts rated").wait_for()
    assert rated(show, path)[0] == 2
    with show.app.context.uow() as tx:
        found = tx.comparisons.votes(path.rsplit("/", 1)[1])
    assert [(v.choice, v.note) for v in found] == [("1", "by hand"), ("tie", "")]
