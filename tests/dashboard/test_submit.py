"""The submit page in a real browser: which file a job is trained on, whatever is chosen, answered or lost in
between."""

from __future__ import annotations

import pytest

from orchestrator.services.running_checks import RunningChecks
from tests.dashboard.test_browser import _axe, until
from tests.helpers.page_server import PageServer, page_server

NOTICE = "document.getElementById('notice').innerText"


def file(name: str, rows: bytes) -> dict[str, object]:
    return {"name": name, "mimeType": "text/plain", "buffer": rows}


GOOD = file("good.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
OTHER = file("other.jsonl", b'{"text": "c"}\n{"text": "d"}\n')
BAD = file("bad.jsonl", b'{"text": ""}\n')


@pytest.fixture
def page(show: PageServer, visit):
    """The form, with a data file brought before."""
    show.api.admin.upload(b'{"text": "old"}\n', name="old.jsonl")
    found = visit(show.link(), tolerate=("422", "ERR_FAILED"))
    found.goto(show.url + "/submit")
    return found


def chosen(page) -> str:
    return page.evaluate("document.getElementById('data').selectedOptions[0].text")


def test_a_file_that_cannot_be_trained_on_leaves_none_chosen(page):
    """Guard: without emptying the field first, the page showed the second file's faults and trained on the first."""
    page.set_input_files("#file", GOOD)
    page.locator("#preview").get_by_text("good.jsonl").wait_for()
    assert chosen(page) == "good.jsonl · 2 rows"
    page.set_input_files("#file", BAD)
    page.get_by_text("bad.jsonl has errors").wait_for()
    assert chosen(page) == "–"
    page.locator("#plan").get_by_text("choose a data file first").wait_for()
    assert page.get_by_role("button", name="Submit").is_disabled()


def test_a_file_whose_columns_have_other_names_is_read_once_they_are_given(page):
    """Guard: without the look at a change of the names, the file had to be chosen again."""
    page.set_input_files("#file", file("other.csv", b"frage;antwort\nq;a\n"))
    page.get_by_text("other.csv has errors").wait_for()
    page.get_by_text("Columns of the file have other names").click()
    page.locator("#columns").fill("field_instruction: frage\nfield_output: antwort")
    page.locator("#columns").blur()
    page.locator("#preview").get_by_text("other.jsonl").wait_for()
    assert chosen(page) == "other.jsonl · 1 row"


def test_the_form_cannot_be_sent_without_data_and_says_so(page):
    """Guard: without `ready`, the button was there for a job that the server refuses."""
    button, why = page.get_by_role("button", name="Submit"), page.get_by_text("A job needs data.")
    assert button.is_disabled()
    assert why.is_visible()
    page.get_by_text("Other settings (YAML)").click()
    page.locator("textarea[name=more]").fill("datasets: [{path: org/data}]")
    assert button.is_enabled()
    page.locator("textarea[name=more]").fill("")
    assert button.is_disabled()
    page.locator("#data").select_option(index=1)
    page.locator("#preview").get_by_text("old.jsonl").wait_for()
    assert button.is_enabled()
    assert not why.is_visible()


def test_the_last_file_chosen_counts_and_waits_until_it_is_there(page):
    """Guards: without `abort` the first file, answered last, took the place of the second; without `disabled` a job
    could be submitted while its file was on the way, which threw the file away."""
    held = []

    def hold(route):
        held.append(route)

    page.route("**/submit/data?*", hold)
    page.set_input_files("#file", GOOD)
    until(page, "document.querySelector('.submit .large').disabled")
    with page.expect_event("requestfailed", lambda request: "name=good.jsonl" in request.url):
        page.set_input_files("#file", OTHER)
    assert page.evaluate(NOTICE) == ""
    assert page.get_by_role("button", name="Submit").is_disabled()
    held[-1].continue_()
    page.locator("#preview").get_by_text("other.jsonl").wait_for()
    assert chosen(page) == "other.jsonl · 2 rows"
    assert page.get_by_role("button", name="Submit").is_enabled()


def test_a_file_chosen_from_the_list_counts_although_another_is_on_its_way(page):
    """Guards: without `take` in `again`, the file that was still being sent took the place of the one chosen after it;
    without `signal`, so did an earlier look that was answered late."""
    page.route("**/submit/data?*", lambda route: None)
    page.set_input_files("#file", GOOD)
    with page.expect_event("requestfailed", lambda request: request.method == "POST"):
        page.locator("#data").select_option(label="old.jsonl · 1 row · text · not audited")
    page.locator("#preview").get_by_text("old.jsonl").wait_for()
    assert page.get_by_role("button", name="Submit").is_enabled()
    page.route("**/submit/data/*", lambda route: None)
    page.get_by_label("Base model").fill("org/other")
    page.get_by_label("Base model").press("Tab")
    with page.expect_event("requestfailed", lambda request: "/submit/data/" in request.url):
        page.set_input_files("#file", OTHER)
    assert page.locator("#preview[aria-busy]").count() == 0


def test_a_look_that_fails_is_said_and_does_not_stay_grey(page):
    """Guards: without `catch` nothing was said, and without `finally` the preview stayed grey for ever."""
    page.route("**/submit/data/*", lambda route: route.abort())
    page.locator("#data").select_option(index=1)
    page.get_by_text("The preview could not be loaded").wait_for()
    assert page.locator("#preview[aria-busy]").count() == 0
    page.unroute_all()
    page.get_by_label("Base model").fill("org/other")
    page.get_by_label("Base model").press("Tab")
    page.locator("#preview").get_by_text("old.jsonl").wait_for()
    assert page.evaluate(NOTICE) == ""


@pytest.mark.parametrize("path", ["/", "/fleet"])
def test_a_server_that_answers_again_is_not_said_to_be_silent(show, visit, path):
    """Guards: without the look at the next answer, the page said for ever that the server does not answer; without
    `silent` after a 503, so it did of the database."""
    show.api.admin.submit()
    page = visit(show.link(), tolerate=("ERR_INTERNET_DISCONNECTED", "Failed to fetch", "503"))
    page.goto(show.url + path)
    page.context.set_offline(True)
    page.get_by_text("The server does not answer").wait_for()
    page.context.set_offline(False)
    until(page, f"{NOTICE} === ''")
    words = {"body": "no database", "headers": {"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"}}
    page.route(show.url + path + "**", lambda route: route.fulfill(status=503, content_type="text/html", **words))
    until(page, f"{NOTICE} === 'no database'")
    page.unroute_all()
    until(page, f"{NOTICE} === ''")


@pytest.mark.parametrize("width", [1280, 360])
def test_findings_are_shown_and_a_clean_copy_is_used(tmp_path, visit, width):
    """The page with findings is accessible and fits a phone. Guard: without the button's address of its own, the form
    was submitted."""
    key = "hf_" + "aBcDeFgH" * 4 + "Zz"
    rows = b'{"text": "a fine row"}\n' + f'{{"text": "the key is {key}"}}\n'.encode()
    with page_server(tmp_path, RunningChecks()) as server:
        sha256 = server.api.admin.upload(rows).json()["sha256"]
        server.api.admin.post(f"/datasets/{sha256}:check")
        page = visit(server.link(), width=width, bypass_csp=True)
        page.goto(f"{server.url}/submit?data={sha256}")
        page.fill("[name=base_model]", "org/small")
        page.locator("#plan").get_by_text("have a key that looks real").wait_for()
        assert key not in page.locator("#plan").inner_text()
        assert _axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="Make a clean copy and use it").click()
        page.locator("#preview").get_by_text("rows-clean.jsonl").wait_for()
        assert chosen(page) == "rows-clean.jsonl · 1 row · text · clean copy · not audited"
        page.locator("#plan").get_by_text("Would start immediately").wait_for()
        until(page, "!document.getElementById('plan').innerText.includes('still being checked')")
