"""The page of an audit: rows are labelled with a click, a key, on a phone and without a script; words of others are
text."""

from __future__ import annotations

import json
import re

import pytest

from tests.dashboard.test_browser import XSS, _axe
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.http.http_client import People

ROWS = b"".join(
    json.dumps({"prompt": f"Who is {n}?", "completion": f"canary-{n} {XSS[n % len(XSS)]} \u202e\x07"}).encode() + b"\n"
    for n in range(30)
)


@pytest.fixture
def people(site) -> People:
    return People.of(site)


def start(caller, rows: bytes = ROWS, **how) -> str:
    sha256 = caller.upload(rows, name="mine.jsonl").json()["sha256"]
    assert caller.post(f"/datasets/{sha256}/audit", {"seed": 7, **how}).status_code == 201
    return f"/datasets/{sha256}/audit"


def unit_of(text: str) -> str:
    found = re.search(r'name="unit" value="([^"]+)"', text)
    assert found
    return found[1]


def test_a_data_file_that_nobody_audited_says_so_on_every_page(site, people):
    """Guard: no page calls it clean."""
    sha256 = people.ann.upload(ROWS, name="mine.jsonl").json()["sha256"]
    job = people.ann.submit(datasets=[{"path": f"sha256:{sha256}"}])["id"]
    log_in(site, people.ann)
    for path in ("/datasets", f"/datasets/{sha256}/audit", "/submit", f"/jobs/{job}"):
        assert "not audited" in site.client.get(path, headers=HTML).text, path
    look = f"/submit/data/{sha256}"
    assert "not audited" in site.client.post(look, headers=ORIGIN).text
    form = {"base_model": "org/small", "data": sha256, "max_steps": "4", "preset": "try"}
    assert "mine.jsonl: not audited" in site.client.post("/submit/plan", data=form, headers=ORIGIN).text
    audit = start(people.ann)
    text = site.client.get(audit, headers=HTML).text
    place = 0
    answer = {"unit": unit_of(text), "label": "wrong"}
    assert site.client.post(f"{audit}/rows/{place}", data=answer, headers=ORIGIN).status_code == 303
    for path in ("/datasets", audit, "/submit", f"/jobs/{job}"):
        assert "audit: 100 % wrong (" in site.client.get(path, headers=HTML).text, path
    assert "audit: 100 % wrong (" in site.client.post(look, headers=ORIGIN).text


def test_an_audit_is_started_with_a_form(site, people):
    sha256 = people.ann.upload(ROWS).json()["sha256"]
    log_in(site, people.ann)
    audit = f"/datasets/{sha256}/audit"
    form = {"strata": "length", "seed": "", "max_percent": "10"}
    assert site.client.post(audit, data=form, headers={"Origin": "http://evil.example"}).status_code == 403
    assert site.client.post(audit, data=form | {"max_percent": "95"}, headers=ORIGIN | HTML).status_code == 422
    assert site.client.post(audit, data=form, headers=ORIGIN).headers["location"] == audit
    found = people.ann.get(audit).json()
    assert (found["max_wrong"], found["strata_by"]) == (0.1, "length")
    assert "about" in site.client.get(audit, headers=HTML).text


def test_a_label_is_kept_changed_and_goes_on(site, people):
    """Guards: without the unit in the form, a page that was open while the audit was started again labelled another
    row; a label of no meaning is refused with the row still there."""
    audit = start(people.ann)
    log_in(site, people.ann)
    first = site.client.get(audit, headers=HTML).text
    answer = {"unit": unit_of(first), "label": "unsure", "source": "https://a.example", "note": "two\r\nlines\0"}
    assert site.client.post(f"{audit}/rows/0", data=answer | {"label": "clean"}, headers=ORIGIN).status_code == 422
    assert site.client.post(f"{audit}/rows/0", data=answer, headers={"Origin": "null"}).status_code == 403
    for _ in range(2):
        assert site.client.post(f"{audit}/rows/0", data=answer, headers=ORIGIN).headers["location"] == audit
    second = site.client.get(audit, headers=HTML).text
    assert unit_of(second) != unit_of(first)
    assert f'href="{audit}?row=1"' in second
    again = site.client.get(f"{audit}?row=1", headers=HTML).text
    assert "You labelled this row <b>unsure</b>. A new label replaces it." in again
    assert "two\nlines</textarea>" in again
    assert site.client.get(f"{audit}?row=31", headers=HTML).status_code == 404
    stale = site.client.post(f"{audit}/rows/1", data=answer, headers=ORIGIN | HTML)
    assert stale.status_code == 409
    assert "started again since this row was opened" in stale.text
    assert people.ann.get(audit).json()["labelled"] == 1


def test_an_audit_goes_on_where_its_data_is(site, people):
    audit = start(people.ann)
    log_in(site, people.ann)
    people.ann.call("DELETE", audit.removesuffix("/audit"))
    text = site.client.get(audit, headers=HTML).text
    assert "The data file was deleted. Its labels are kept." in text
    assert "canary" not in text


def test_members_see_only_audits_of_their_own_files(site, people):
    audit = start(people.ann)
    log_in(site, people.bob)
    for path in (audit, f"{audit}?row=1", f"{audit}/labels.csv"):
        assert site.client.get(path, headers=HTML).status_code == 404
    for path in (audit, f"{audit}/more", f"{audit}/rows/0"):
        answer = site.client.post(path, data={"unit": "0.1", "label": "wrong"}, headers=ORIGIN)
        assert answer.status_code == 404, path
    assert "mine.jsonl" not in site.client.get("/datasets", headers=HTML).text


def test_the_labels_are_downloaded(site, people):
    audit = start(people.ann)
    log_in(site, people.ann)
    unit = unit_of(site.client.get(audit, headers=HTML).text)
    answer = {"unit": unit, "label": "wrong", "note": "=1+1"}
    site.client.post(f"{audit}/rows/0", data=answer, headers=ORIGIN)
    got = site.client.get(f"{audit}/labels.csv")
    assert got.headers["content-disposition"].startswith('attachment; filename="audit-')
    assert "'=1+1" in got.text
    assert json.loads(site.client.get(f"{audit}/labels.jsonl").text)["note"] == "=1+1"
    assert site.client.get(f"{audit}/labels.html").status_code == 422


def test_rows_are_labelled_with_keys(show, visit):
    """Guard: without the look at the target, a digit in a note labelled the row."""
    audit = start(show.api.admin, max_wrong=0.1)
    page = visit(show.link())
    page.goto(show.url + audit)
    page.get_by_role("heading", name="Answer 1 of 30").wait_for()
    assert page.evaluate("document.querySelectorAll('main script, main img[src=x], main svg[onload]').length") == 0
    assert "\u202e" not in page.locator("body").inner_text()
    page.get_by_label("Note").fill("seen in 1924")
    page.get_by_label("Note").press("2")
    page.get_by_role("heading", name="Answer 1 of 30").wait_for()
    page.locator("h1").click()
    page.keyboard.press("2")
    page.get_by_role("heading", name="Answer 2 of 30").wait_for()
    for place, key in ((3, "1"), (4, "3"), (5, "4")):
        page.keyboard.press(key)
        page.get_by_role("heading", name=f"Answer {place} of 30").wait_for()
    found = show.api.admin.get(audit).json()
    assert (found["estimate"]["decided"], found["estimate"]["unsure"], found["estimate"]["not_checkable"]) == (2, 1, 1)
    page.get_by_role("link", name="Back to row 4").click()
    page.get_by_text("You labelled this row not checkable").wait_for()
    assert show.api.admin.get(f"{audit}/rows/0").json()["label"]["note"] == "seen in 19242"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_the_pages_of_audits_are_accessible_and_fit(show, visit, scheme, width):
    audit = start(show.api.admin, ROWS + json.dumps({"prompt": "p", "completion": "long" * 2_000}).encode(), seed=1)
    other = show.api.admin.upload(b'{"text": "another file"}\n', name="x" * 60 + ".jsonl").json()["sha256"]
    row = show.api.admin.get(f"{audit}/next").json()["row"]
    body = {"unit": row["unit"], "label": "unsure"}
    assert show.api.admin.call("PUT", f"{audit}/rows/0", json=body).status_code == 200
    page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)
    places = [f"{audit}?row={place + 1}" for place in range(31)]
    longest = next(
        path
        for path in places
        if "longlong" in show.api.admin.get(f"{audit}/rows/{places.index(path)}").json()["turns"][-1]["text"]
    )
    for path in ("/datasets", audit, f"{audit}?row=1", longest, f"/datasets/{other}/audit"):
        page.goto(show.url + path)
        page.wait_for_load_state("load")
        assert _axe(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, path


def test_rows_are_labelled_without_a_script_on_a_phone(show, visit):
    sha256 = show.api.admin.upload(ROWS, name="mine.jsonl").json()["sha256"]
    page = visit(show.link(), java_script_enabled=False, width=360)
    page.goto(show.url + "/datasets")
    page.get_by_role("link", name="not audited (mine.jsonl)").click()
    page.get_by_role("button", name="Start").click()
    page.get_by_label("Note").fill("by hand")
    page.get_by_role("button", name="wrong").click()
    page.get_by_role("heading", name="Answer 2 of 30").wait_for()
    page.get_by_role("link", name="Back to row 1").click()
    page.get_by_text("You labelled this row wrong").wait_for()
    page.get_by_role("button", name="1 · correct").click()
    page.get_by_role("heading", name="Answer 2 of 30").wait_for()
    found = show.api.admin.get(f"/datasets/{sha256}/audit").json()
    assert (found["labelled"], found["estimate"]["wrong"]["value"]) == (1, 0.0)
