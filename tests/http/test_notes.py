"""Notes of jobs: written by their owners, read by all who see the job, gone with it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from orchestrator.adapters.database import tables
from orchestrator.services.notes import MAX_NOTE
from tests.dashboard.test_pages import log_in
from tests.http.http_client import Api, People


def test_an_owner_writes_a_note_and_colleagues_read_it(api: Api, people: People) -> None:
    """Guards: with `seen_job` in `set_note` bob wrote on ann's job; without the line in `delete_records` the note of a
    deleted job stayed in the database."""
    job = people.ann.submit()
    assert job["note"] == ""
    path = f"/jobs/{job['id']}"
    kept = people.ann.call("PUT", f"{path}/note", json={"note": "  tried a lower rate\n\nit is better \U0001f642 "})
    assert kept.json() == {"note": "tried a lower rate\n\nit is better \U0001f642"}
    assert people.bob.call("PUT", f"{path}/note", json={"note": "mine"}).status_code == 404
    assert people.admin.call("PUT", "/team", json={"everyone_sees_jobs": True}).status_code == 200
    refused = people.bob.call("PUT", f"{path}/note", json={"note": "mine"})
    assert refused.status_code == 403
    assert refused.json()["detail"] == f"Job {job['id']} belongs to ann. Only ann or an admin can do this."
    assert (
        people.bob.get(path).json()["note"] == people.bob.get("/jobs").json()["items"][0]["note"] == kept.json()["note"]
    )
    assert people.ann.call("PUT", f"{path}/note", json={"note": " "}).json() == {"note": ""}
    assert people.ann.get(path).json()["note"] == ""
    people.ann.call("PUT", f"{path}/note", json={"note": "private"})
    people.ann.post(f"{path}:cancel")
    assert people.ann.call("DELETE", path).status_code == 204
    with api.app.engine.connect() as connection:
        assert connection.execute(select(tables.job_notes)).all() == []


@pytest.mark.parametrize("bad", ["n" * (MAX_NOTE + 1), "a\0b", "\ud800", None, 7])
def test_a_note_is_a_short_text(api: Api, people: People, bad: object) -> None:
    path = f"/jobs/{people.ann.submit()['id']}"
    body = json.dumps({"note": bad})
    headers = {"Content-Type": "application/json"}
    assert people.ann.call("PUT", f"{path}/note", content=body, headers=headers).status_code == 422
    assert people.ann.get(path).json()["note"] == ""


def test_the_page_of_a_job_shows_and_changes_its_note(api1: Api, people: People) -> None:
    """Guard: without the check in `set_note`, the form stored 501 characters, which PostgreSQL refuses."""
    job = people.ann.submit()["id"]
    log_in(api1, people.ann)
    page = api1.client

    def save(text: str) -> int:
        sent = page.post(f"/jobs/{job}/note", data={"note": text}, headers={"Origin": "http://127.0.0.1"})
        return sent.status_code

    assert save("<b>first</b>\r\nsecond") in (200, 303)
    assert people.ann.get(f"/jobs/{job}").json()["note"] == "<b>first</b>\nsecond"
    assert "&lt;b&gt;first&lt;/b&gt;\nsecond</p>" in page.get(f"/jobs/{job}").text
    assert save("n" * (MAX_NOTE + 1)) == 422
    log_in(api1, people.bob)
    assert save("mine") == 404
