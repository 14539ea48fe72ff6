"""A gated model in a notebook that speaks through a Drive: what its owner's sign-in opens, and who is not told of
it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import update

from orchestrator.adapters.database.tables import jobs
from orchestrator.services import stores
from orchestrator.services.mailbox import MailboxPoller
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator, Repo
from tests.http.conftest import _api
from tests.http.http_client import People
from tests.services.test_hub import ANN, FILES, SHARDS
from tests.services.test_mailbox import Tab
from worker.notebook.mailbox_connection import _signed_in
from worker.shared.messages import Assignment

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def app(database_url, make_server, drive: Drive, hub: HubEmulator):
    hub.accounts[ANN] = "ann"
    hub.add(Repo(id="org/gated", files=FILES, gated=True, readers={"ann"}))
    hub.add(
        Repo(id="org/other", files=FILES | {"config.json": b'{"model_type": "other"}'}, private=True, readers={"ann"})
    )
    made = make_server(
        database_url, drivers={"drive": {"endpoint": drive.url}}, offline=False, hub_endpoint=hub.endpoint
    )
    stores.use_store(made.context, "drive", json.dumps(drive.authorized_user()))
    return made


@pytest.fixture
def ann(app) -> Iterator[Any]:
    for api in _api(app):
        ann = People.of(api).ann
        assert ann.call("PUT", "/hub-token", json={"token": ANN}).status_code == 200
        yield ann


def read(grant: Any) -> bytes:
    return httpx.get(grant.url, headers=grant.headers, trust_env=False, follow_redirects=True).content


def claimed_by_a_notebook(ann, app, drive, job: dict[str, Any]) -> Assignment:
    """What a notebook in the person's Drive is given for the job."""
    tab = Tab(ann.post(f"/jobs/{job['id']}:notebook").json(), drive)
    tab.ask()
    MailboxPoller(app.context).round()
    tab.answer()
    claimed = _signed_in(tab.claimed, tab.pen._headers(), urlsplit(tab.pen._up).netloc)
    assert claimed.ticket.assignment is not None
    return claimed.ticket.assignment


def test_small_files_lie_in_the_drive_and_strangers_are_not_told_who_asks(ann, app, drive, hub):
    """Guards: under the grants' own keys the second model was given the first one's files; with every grant signed, the
    weights' host was told the owner's Google token."""
    for model in ("org/gated", "org/other"):
        job = ann.submit(base_model=model)
        assignment = claimed_by_a_notebook(ann, app, drive, job)
        assert {grant.key for grant in assignment.model} >= {"model/config.json", *(f"model/{name}" for name in SHARDS)}
        before = len(hub.seen)
        for grant in assignment.model:
            name = grant.key.removeprefix("model/")
            assert bool(grant.headers) is (name not in SHARDS)
            assert read(grant) == hub.repos["model", model].files[name]
        assert {seen.authorization for seen in hub.seen[before:]} == {None}


def test_the_files_of_a_judge_are_others_than_those_of_the_base_model(ann, app, drive, hub):
    """Guards: with the judge's grants as they are in the bundle the notebook had no address for its small files."""
    job = ann.submit(base_model="org/gated")
    spec = job["spec"] | {"evaluation": {"judge": {"model": "org/other"}}}  # no other part of an evaluation matters
    with app.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job["id"]).values(spec=spec))
    assignment = claimed_by_a_notebook(ann, app, drive, job)
    for folder, model in (("model", "org/gated"), ("judge", "org/other")):
        for grant in getattr(assignment, folder):
            assert read(grant) == hub.repos["model", model].files[grant.key.removeprefix(f"{folder}/")]
    assert {grant.key for grant in assignment.judge} >= {"judge/config.json", *(f"judge/{name}" for name in SHARDS)}


def test_a_notebook_is_told_what_the_hub_refuses(ann, app, drive, hub):
    """Guard: with an error that is no answer the notebook waited on, and nobody was told why."""
    job = ann.submit(base_model="org/gated")
    tab = Tab(ann.post(f"/jobs/{job['id']}:notebook").json(), drive)
    hub.repos["model", "org/gated"].readers.clear()
    tab.ask()
    MailboxPoller(app.context).round()
    assert "Accept its terms at https://huggingface.co/org/gated and try again" in tab.answer().refused
    assert ann.get(f"/jobs/{job['id']}").json()["state"] == "failed"
