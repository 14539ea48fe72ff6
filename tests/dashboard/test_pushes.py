"""The part of a job's page that pushes the adapter to the hub: a form without a script, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from orchestrator.entrypoints.http.app import make_app
from orchestrator.services.pushing import work
from tests.dashboard.test_browser import _axe
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.emulators.hub import HubEmulator
from tests.helpers.pushes import add_finished_job
from tests.http.http_client import Api

TOKEN, JOB, REPO = "hf_of_the_admin", "job-finished0001", "admin-on-the-hub/trail-guide"


@pytest.fixture
def site(make_server, empty_database, hub: HubEmulator, tmp_path) -> Iterator[Api]:
    hub.accounts[TOKEN] = "admin-on-the-hub"
    app = make_server(empty_database("sqlite"), offline=False, hub_endpoint=hub.endpoint)
    add_finished_job(app.context.uow, app.store, JOB, tmp_path)
    with TestClient(make_app(app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield Api(app=app, client=client)


def test_an_adapter_is_pushed_from_the_page_of_its_job(site: Api, hub: HubEmulator) -> None:
    """Guards: without `pushes` before `jobs` among the pages, the form did nothing. Words of the hub are escaped."""
    log_in(site)
    page = site.client.get(f"/jobs/{JOB}", headers=HTML).text
    assert f'action="/jobs/{JOB}/push"' in page
    assert "This adapter was not pushed." in page
    refused = site.client.post(f"/jobs/{JOB}/push", data={"repo": REPO}, headers=ORIGIN | HTML)
    assert (refused.status_code, "trainhop hub login" in refused.text) == (422, True)
    site.client.post("/hub-token", data={"token": TOKEN}, headers=ORIGIN)
    foreign = {"Origin": "https://evil.example"}
    assert site.client.post(f"/jobs/{JOB}/push", data={"repo": REPO}, headers=foreign).status_code == 403
    sent = site.client.post(f"/jobs/{JOB}/push", data={"repo": REPO}, headers=ORIGIN)
    assert (sent.status_code, sent.headers["location"]) == (303, f"/jobs/{JOB}#push")
    page = site.client.get(f"/jobs/{JOB}", headers=HTML).text
    assert "<b>running</b>" in page
    assert f'action="/jobs/{JOB}/push"' not in page
    hub.rules.add("POST /api/repos/create", status=403, body={"error": "<script>"})
    (push,) = site.admin.get(f"/jobs/{JOB}/pushes").json()["items"]
    work(site.app.pushing, push["id"])
    page = site.client.get(f"/jobs/{JOB}", headers=HTML).text
    assert f"<b>failed</b> · {REPO}: Hugging Face does not let you write to {REPO}" in page
    form = {"repo": REPO, "public": "true", "replace": "true"}
    assert site.client.post(f"/jobs/{JOB}/push", data=form, headers=ORIGIN).status_code == 303
    (push,) = site.admin.get(f"/jobs/{JOB}/pushes").json()["items"]
    assert (push["is_public"], push["replace"]) == (True, True)
    work(site.app.pushing, push["id"])
    page = site.client.get(f"/jobs/{JOB}", headers=HTML).text
    commit = hub.repos["model", REPO].commit
    assert f'href="https://huggingface.co/{REPO}/commit/{commit}"' in page
    assert TOKEN not in page


def test_the_form_is_accessible_and_fits(show, visit, tmp_path) -> None:
    add_finished_job(show.app.context.uow, show.app.store, JOB, tmp_path)
    for scheme, width in (("light", 1280), ("dark", 360)):
        page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)
        page.goto(f"{show.url}/jobs/{JOB}")
        page.get_by_text("Push to the hub…").click()
        page.get_by_label("Repository").fill(f"{'o' * 90}/{'n' * 90}")
        assert _axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
