"""Models over HTTP and on the command line: promotion, refusal, rollback, cards, and what other members see."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import pytest
from typer.testing import CliRunner

from orchestrator.domain.trust.sign_test import Outcome
from orchestrator.entrypoints.cli.client import Client
from orchestrator.entrypoints.cli.main import app as command_line
from orchestrator.ports.providers import Liveness
from orchestrator.services.reconcile import reconcile
from tests.helpers.verdicts import evaluate, vote
from tests.http.http_client import Api, ApiUser, Machine, People, served
from trainhop.download import save_adapter
from trainhop.errors import Error

BETTER = [Outcome.ADAPTER] * 18 + [Outcome.BASE] * 2
WORSE = [Outcome.BASE] * 20


def trained(api: Api, caller: ApiUser, provider, tmp_path, **spec) -> str:
    """A finished job of the caller's, whose provenance is whole. `data` and `adapter_sha256` are of its adapter."""
    adapter = {key: spec.pop(key) for key in ("data", "adapter_sha256") if key in spec}
    job = caller.submit(**spec)["id"]
    machine = Machine.launched(api, provider)
    machine.start()
    assert machine.save(10, tmp_path, base_sha256="b" * 64).json()["committed"]
    assert machine.finish(10, **adapter).status_code == 204
    provider.liveness[machine.lease] = Liveness.ENDED
    reconcile(api.app.context)
    return job


def rated(api: Api, caller: ApiUser, job: str, outcomes: list[Outcome], **report) -> str:
    """An evaluation of the job on which people voted like this. Returns its own job."""
    own = caller.submit(name="its evaluation")["id"]
    assert caller.post(f"/jobs/{own}:cancel").status_code == 200
    with api.app.context.uow() as tx:
        found = tx.jobs.get_many([job])[job]
    vote(api.app.context.uow, evaluate(api.app.context.uow, found, own, **report), outcomes)
    return own


def test_a_model_over_http(api: Api, people: People, provider, tmp_path) -> None:
    job = trained(api, people.ann, provider, tmp_path)
    assert people.ann.get(f"/jobs/{job}/verdict").json()["reasons"] == ["The adapter is not evaluated yet."]
    own = rated(api, people.ann, job, BETTER)
    verdict = people.ann.get(f"/jobs/{job}/verdict").json()
    assert (verdict["answer"], verdict["evaluation"], verdict["comparisons"]) == ("promote", own, 1)
    assert verdict["votes"] == {"quality": "better", "wins": 18, "losses": 2, "ties": 0}
    assert [audit["words"] for audit in verdict["audits"]] == ["not audited"]
    model = people.ann.post("/models/guide:promote", {"job": job}).json()
    assert (model["promoted"], model["against_verdict"], model["moves"], model["rollback_to"]) == (job, False, 1, None)
    assert model["candidates"][0]["adapter_sha256"] == "a" * 64
    assert [(m["before"], m["after"], m["actor"], m["verdict"]) for m in model["history"]] == [
        (None, job, "ann", "promote")
    ]
    assert people.ann.get("/models/guide").json() == model
    assert [m["promoted"] for m in people.ann.get("/models").json()["items"]] == [job]
    again = people.ann.post("/models/guide:promote", {"job": job})
    assert (again.status_code, again.json()["type"]) == (409, "urn:trainhop:problem:conflict")
    assert people.ann.post("/models/guide:rollback", {"after": 0}).status_code == 409
    assert people.ann.post("/models/guide:rollback", {"after": 1}).json()["promoted"] is None


def test_a_refusal_has_the_reasons_and_an_admin_may_force_it(api1: Api, people: People, provider, tmp_path) -> None:
    job = trained(api1, people.ann, provider, tmp_path)
    rated(api1, people.ann, job, WORSE, vetoes=["It forgot general text."])
    refused = people.ann.post("/models/guide:promote", {"job": job})
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "The verdict is: do not promote. People prefer the base model to the adapter. It forgot general text.",
    )
    assert people.ann.get("/models").json()["items"] == []
    assert people.ann.post("/models/guide:promote", {"job": job, "force": True}).status_code == 403
    forced = people.admin.post("/models/guide:promote", {"job": job, "force": True}).json()
    assert (forced["member"], forced["against_verdict"]) == ("ann", True)
    assert forced["history"][0]["reasons"] == [
        "People prefer the base model to the adapter.",
        "It forgot general text.",
    ]
    assert "promoted against the verdict as guide" in people.ann.get("/models/guide/card").text
    assert people.admin.get("/models/guide").status_code == 404
    assert people.admin.get("/models/guide", params={"member": "ann"}).json() == people.ann.get("/models/guide").json()
    assert people.admin.post("/models/guide:rollback", {}, params={"member": "ann"}).json()["promoted"] is None


def test_a_candidate_waits_for_its_verdict(api1: Api, people: People, provider, tmp_path) -> None:
    job = trained(api1, people.ann, provider, tmp_path)
    added = people.ann.post("/models/guide/candidates", {"job": job})
    assert (added.status_code, added.json()["promoted"]) == (201, None)
    (candidate,) = added.json()["candidates"]
    assert (candidate["promoted"], candidate["verdict"]["answer"]) == (False, "not enough evidence")
    for path in ("card", "provenance"):
        assert people.ann.get(f"/models/guide/{path}").status_code == 404


def test_others_neither_see_nor_move_a_model(api1: Api, people: People, provider, tmp_path) -> None:
    """Guard: with `may_see` left out of `_of`, bob read ann's model under its name."""
    job = trained(api1, people.ann, provider, tmp_path)
    rated(api1, people.ann, job, BETTER)
    assert people.ann.post("/models/guide:promote", {"job": job}).status_code == 200
    for path in ("/models/guide", "/models/guide/card", f"/jobs/{job}/card", f"/jobs/{job}/verdict"):
        assert people.bob.get(path, params={"member": "ann"}).status_code == 404, path
    for path, body in (("candidates", {"job": job}), (":promote", {"job": job}), (":rollback", {})):
        where = f"/models/guide{path if path.startswith(':') else '/' + path}"
        assert people.bob.post(where, body, params={"member": "ann"}).status_code == 404, path
    assert people.bob.get("/models", params={"member": "ann"}).json()["items"] == []
    assert people.ann.get("/models/guide").json()["moves"] == 1


def test_the_card_and_provenance_are_made_when_they_are_read(api1: Api, people: People, provider, tmp_path) -> None:
    """Guard: a rewritten archive would have another sha256 than the one that its checkpoints and pages name."""
    job = trained(api1, people.ann, provider, tmp_path)
    archive = people.ann.get(f"/jobs/{job}/adapter").content
    before = people.ann.get(f"/jobs/{job}/card")
    assert before.headers["content-type"].startswith("text/markdown")
    rated(api1, people.ann, job, BETTER)
    after = people.ann.get(f"/jobs/{job}/card").text
    assert "not evaluated yet" in before.text
    assert "Verdict: **promote**" in after
    assert people.ann.get(f"/jobs/{job}/adapter").content == archive
    found = people.ann.get(f"/jobs/{job}/provenance").json()
    assert (found["format"], found["adapter"]["sha256"]) == (1, "a" * 64)
    queued = people.ann.submit()["id"]
    assert people.ann.get(f"/jobs/{queued}/card").status_code == 404
    assert people.ann.get(f"/jobs/{queued}/verdict").status_code == 409


@pytest.mark.parametrize("name", ["a:b", "-a", "a b", "x" * 101, "%2e%2e", "a%0a", "a%00"])
def test_a_name_that_is_no_name_is_refused(api1: Api, people: People, name: str) -> None:
    assert people.ann.get(f"/models/{name}").status_code in (404, 422)
    assert people.ann.post(f"/models/{name}/candidates", {"job": "job-1"}).status_code in (404, 405, 422)
    assert people.ann.get("/models").json()["items"] == []


@pytest.mark.parametrize("body", [{}, {"job": "job\0"}, {"job": "x" * 65}, {"job": "job-1", "after": -1}, {"job": 7}])
def test_a_promotion_that_is_none_is_refused(api1: Api, people: People, body) -> None:
    assert people.ann.post("/models/guide:promote", body).status_code == 422


class Commands:
    """Runs `trainhop models` in this process, against a real socket."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, *words: str) -> str:
        done = CliRunner().invoke(command_line, ["--server", self._url, "models", *words])
        if done.exception is not None:
            raise done.exception
        return done.output


def test_the_commands_show_promote_and_roll_back(sqlite_app, provider, tmp_path, monkeypatch) -> None:
    with served(sqlite_app) as api:
        people = People.of(api)
        job = trained(api, people.ann, provider, tmp_path, name="first")
        monkeypatch.setenv("TRAINHOP_TOKEN", people.ann.token)
        models = Commands(str(api.client.base_url))
        assert "guide has 1 candidate" in models("add", "guide", "first")
        assert "The adapter is not evaluated yet." in models("show", "guide")
        with pytest.raises(Error, match="not evaluated yet"):
            models("promote", "guide", job)
        rated(api, people.ann, job, BETTER)
        assert f"promoted in guide: {job}" in models("promote", "guide", job)
        assert "promotion" in models("show", "guide")
        assert json.loads(models("show", "guide", "--json"))["promoted"] == job
        assert job in models("ls")
        assert json.loads(models("ls", "--json"))[0]["name"] == "guide"
        with pytest.raises(Error, match="Only an admin"):
            models("promote", "guide", job, "--force")
        assert "promoted in guide: nothing" in models("rollback", "guide")
        worse = trained(api, people.ann, provider, tmp_path, name="worse")
        rated(api, people.ann, worse, WORSE)
        monkeypatch.setenv("TRAINHOP_TOKEN", people.admin.token)
        assert "promoted against the verdict" in models("promote", "guide", worse, "--force")
        assert "promoted against the verdict" in models("show", "guide", "--member", "ann")


def test_a_downloaded_folder_has_todays_card_beside_its_weights(sqlite_app, provider, tmp_path) -> None:
    """Guard: without `_add_evidence` the folder's card was that of the job's end, which knows no evaluation."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("adapter_model.safetensors", b"weights")
        archive.writestr("README.md", "the card of the job's end")
    with served(sqlite_app) as api:
        people = People.of(api)
        sha256 = hashlib.sha256(b"weights").hexdigest()
        job = trained(api, people.ann, provider, tmp_path, data=packed.getvalue(), adapter_sha256=sha256)
        rated(api, people.ann, job, BETTER)
        client = Client(str(api.client.base_url), people.ann.token)
        save_adapter(client, people.ann.get(f"/jobs/{job}").json(), tmp_path / "out")
        client.close()
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found.keys() == {"adapter_model.safetensors", "README.md", "trainhop-provenance.json"}
    assert b"Verdict: **promote**" in found["README.md"]
    assert json.loads(found["trainhop-provenance.json"])["adapter"]["sha256"] == sha256
