"""What colleagues see of each other's jobs on the pages, and what they cannot do there."""

from __future__ import annotations

import pytest

from orchestrator.entrypoints.dashboard.job_view import look
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.http.http_client import Api, Machine, People


@pytest.fixture
def people(site: Api) -> People:
    return People.of(site)


def _finished(site: Api, people: People, provider, tmp_path) -> tuple[str, Machine]:
    job = people.ann.submit(name="anns-job")["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    machine.report(10)
    machine.save(10, tmp_path)
    assert machine.finish(10).status_code == 204
    return job, machine


def test_a_colleague_reads_the_page_and_gets_no_button(site, people, provider, tmp_path):
    """Guards: without `is_own` in `job_status.html` bob was offered the adapter and Delete; with the own page's
    sections for all in `Hub._shown`, the next piece of news brought them back."""
    job, machine = _finished(site, people, provider, tmp_path)
    log_in(site, people.admin)
    site.client.post("/people/team", data={"everyone_sees_jobs": "true"}, headers=ORIGIN)
    assert "checked" in site.client.get("/people").text
    site.client.cookies.clear()
    log_in(site, people.bob)
    assert "anns-job" in site.client.get("/").text
    assert "anns-job" not in site.client.get("/?mine=true").text
    shown = site.client.get(f"/jobs/{job}").text
    assert "anns-job" in shown
    actions = (f'action="/jobs/{job}', f"/jobs/{job}/adapter", f"/submit?clone={job}", f"/jobs/{job}/exports", '/file"')
    assert [each for each in actions if each in shown] == []
    for is_own in (True, False):
        found = look(site.client.app.state.server, job, is_own=is_own)
        assert found is not None
        text = "".join(found.sections().values())
        assert ("<form" in text, any(each in text for each in actions)) == (is_own, is_own)
    for path in ("/curve.json", f"/sessions/{machine.lease}", f"/sessions/{machine.lease}/raw"):
        assert site.client.get(f"/jobs/{job}{path}").status_code == 200, path
    for path in ("delete", "retry", "priority", "evaluate", "notebook", "push", "exports", "chat"):
        form = {"priority": 1, "format": "gguf", "question": "x", "repo": "a/b"}
        refused = site.client.post(f"/jobs/{job}/{path}", data=form, headers=HTML | ORIGIN)
        assert refused.status_code == 403, path
        assert f"Job {job} belongs to ann" in refused.text
    assert site.client.get(f"/submit?clone={job}").status_code == 403
    assert site.client.post("/people/team", data={}, headers=ORIGIN).status_code == 403
    assert people.ann.get(f"/jobs/{job}").status_code == 200


def test_a_viewer_gets_pages_and_no_forms_that_would_be_refused(site, people, provider, tmp_path):
    """Guard: without `refuse_viewer` in `render.viewer` the form of the notifications page was carried out."""
    job, _ = _finished(site, people, provider, tmp_path)
    people.admin.post("/members", {"name": "vera", "role": "viewer"})
    vera = site.as_(people.admin.post("/tokens", {"member": "vera"}).json()["secret"])
    log_in(site, vera)
    assert "New job" not in site.client.get("/").text
    assert site.client.get(f"/jobs/{job}").status_code == 200
    for path in ("/notifications", f"/jobs/{job}/delete", "/submit", "/demo", "/people"):
        refused = site.client.post(path, data={"name": "x", "url": "https://203.0.113.9"}, headers=HTML | ORIGIN)
        assert refused.status_code == 403, path
        assert "Your role is viewer" in refused.text
    assert site.client.post("/tokens", data={"name": "phone"}, headers=ORIGIN).status_code == 200
    assert site.client.post("/logout", headers=ORIGIN).status_code == 303
