"""The form for a Hugging Face token, beside the accounts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from orchestrator.entrypoints.http.app import make_app
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.emulators.hub import HubEmulator
from tests.http.http_client import Api, People

TOKEN = "hf_typed_into_the_form"


@pytest.fixture
def site(make_server, empty_database, hub: HubEmulator) -> Iterator[Api]:
    hub.accounts[TOKEN] = "<i>ann</i>"
    app = make_server(empty_database("sqlite"), offline=False, hub_endpoint=hub.endpoint)
    with TestClient(make_app(app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield Api(app=app, client=client)


def test_a_token_is_entered_seen_to_be_there_and_forgotten(site):
    """Guard: without `hub` among the page's values the page was a bug's."""
    log_in(site)
    page = site.client.get("/accounts", headers=HTML).text
    assert 'action="/hub-token"' in page
    assert "Remove token" not in page
    refused = site.client.post("/hub-token", data={"token": "hf_made_up"}, headers=ORIGIN | HTML)
    assert refused.status_code == 422
    assert "does not accept your token" in refused.text
    assert site.client.post("/hub-token", data={"token": TOKEN}, headers=ORIGIN).headers["location"] == "/accounts"
    page = site.client.get("/accounts", headers=HTML).text
    assert "&lt;i&gt;ann&lt;/i&gt;" in page
    assert "Remove token" in page
    assert TOKEN not in page
    assert site.client.post("/hub-token/remove", headers=ORIGIN).status_code == 303
    assert "Remove token" not in site.client.get("/accounts", headers=HTML).text


def test_the_form_is_ones_own_and_closed_to_other_sites(site):
    """Guard: without the gate's look at `Origin` another site could have put its own token there."""
    people = People.of(site)
    assert site.client.post("/hub-token", data={"token": TOKEN}, headers=ORIGIN).status_code == 401
    log_in(site, people.ann)
    foreign = {"Origin": "https://evil.example"}
    assert site.client.post("/hub-token", data={"token": TOKEN}, headers=foreign).status_code == 403
    assert site.client.post("/hub-token", data={"token": TOKEN}, headers=ORIGIN).status_code == 303
    assert people.ann.get("/hub-token").json()["stored"] is True
    assert people.bob.get("/hub-token").json()["stored"] is False
    assert "Remove token" in site.client.get("/accounts", headers=HTML).text


def test_a_token_sealed_with_another_key_is_said_on_the_page(site):
    log_in(site)
    site.client.post("/hub-token", data={"token": TOKEN}, headers=ORIGIN)
    me = site.admin.get("/me").json()["id"]
    with site.app.context.uow() as tx:
        (member,) = tx.members.get_for_update(me)
        member.hub_token = "sealed with another key"
        tx.members.save(member)
    assert "Set it again with `trainhop hub login`" in site.client.get("/accounts", headers=HTML).text
