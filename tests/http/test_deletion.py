"""Deleting over HTTP and on the pages: nobody finds the job any more, wherever it was listed."""

from orchestrator.ports.providers import Liveness
from orchestrator.services.reconcile import reconcile
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.http.http_client import Api, Machine, People


def trained(api: Api, people: People, provider, tmp_path) -> tuple[str, Machine]:
    """A job of ann's that is done, with its machine cleared up."""
    job = people.ann.submit()["id"]
    machine = Machine.launched(api, provider)
    machine.start()
    machine.report(10)
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10).status_code == 204
    provider.liveness[machine.lease] = Liveness.ENDED
    provider.logs[machine.lease] = b"step 10"
    reconcile(api.app.context)
    return job, machine


def test_a_deleted_job_is_found_nowhere(api, people, provider, tmp_path):
    """Guards: without `_is_there` in each of `_job`, `_owner`, `_session`, `_page` and `counts` one of these still told
    of the job; without `delete_log` its log stayed.
    """
    job, machine = trained(api, people, provider, tmp_path)
    clone = people.ann.post(f"/jobs/{job}:clone", {}).json()["id"]
    people.ann.post(f"/jobs/{clone}:cancel")
    assert people.bob.call("DELETE", f"/jobs/{job}").status_code == 404
    answer = people.ann.call("DELETE", f"/jobs/{job}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert people.ann.call("DELETE", f"/jobs/{job}").status_code == 404
    for path in ("", "/sessions", "/checkpoints", "/adapter", "/metrics", "/samples", "/events"):
        assert people.ann.get(f"/jobs/{job}{path}").status_code == 404
    for path in ("", "/log", "/readings"):
        assert people.ann.get(f"/sessions/{machine.lease}{path}").status_code == 404
    assert [j["id"] for j in people.ann.get("/jobs").json()["items"]] == [clone]
    assert [j["id"] for j in people.admin.get("/jobs", params={"state": "succeeded"}).json()["items"]] == []
    assert people.admin.get("/sessions").json()["items"] == []
    assert people.ann.get(f"/jobs/{clone}").json()["cloned_from"] == job
    assert (
        'state="succeeded"'
        not in api.client.get("/metrics", headers={"Authorization": f"Bearer {api.admin_token}"}).text
    )
    assert machine.lease not in provider.logs
    people.ann.call("DELETE", f"/jobs/{clone}")
    assert people.ann.get("/jobs").json() == {"items": [], "next": None}


def test_a_running_job_is_not_deleted(api1, people, provider):
    job = people.ann.submit()["id"]
    Machine.launched(api1, provider).start()
    refused = people.ann.call("DELETE", f"/jobs/{job}")
    assert refused.status_code == 409
    assert "Cancel it before you delete it" in refused.json()["detail"]
    assert people.ann.get(f"/jobs/{job}").json()["state"] == "running"


def test_the_page_of_a_job_that_has_ended_deletes_it(api1, people, provider, tmp_path):
    job, _ = trained(api1, people, provider, tmp_path)
    kept = people.ann.submit(name="kept")["id"]
    log_in(api1, people.ann)
    path, web = f"/jobs/{job}", api1.client
    assert f'action="{path}/delete"' in web.get(path, headers=HTML).text
    assert f'action="/jobs/{kept}/delete"' not in web.get(f"/jobs/{kept}", headers=HTML).text
    done = web.post(f"{path}/delete", headers=HTML | ORIGIN, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert web.get(path, headers=HTML).status_code == 404
    page = web.get("/", headers=HTML).text
    assert "kept" in page
    assert job not in page
    refused = web.post(f"/jobs/{kept}/delete", headers=HTML | ORIGIN)
    assert refused.status_code == 409
    assert "Cancel it" in refused.text
