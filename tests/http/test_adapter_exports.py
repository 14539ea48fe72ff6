"""Exports of adapters on the server: who may make them, one at a time, whole or not at all, and gone with their job."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from benchmarks.export.models import make_adapter, make_model
from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.exports import ExportFormat
from orchestrator.entrypoints.http.app import make_app
from orchestrator.ports.exports import NotExported
from orchestrator.ports.providers import Liveness
from orchestrator.services import adapter_exports
from orchestrator.services.reconcile import reconcile
from orchestrator.services.running_exports import RunningExports
from tests.helpers.exporter import FILES, HeldExporter, finish_export, packed, small_adapter
from tests.helpers.waiting import wait_for
from tests.http.http_client import Api, Machine, People
from worker.training.base_model import sha256 as base_sha256

GGUF_ADAPTER = {"format": "gguf-adapter"}


@pytest.fixture
def exporter(api1) -> HeldExporter:
    """In place of the process that loads torch."""
    held = HeldExporter()
    running(api1).exporter = held
    return held


def running(api: Api) -> RunningExports:
    found = api.app.context.exports
    assert found is not None
    return found


def trained(api: Api, provider, person, folder: Path, archive: bytes = b"", **changes) -> str:
    """A job that has succeeded, with this adapter."""
    job = person.submit(**changes)["id"]
    machine = Machine.launched(api, provider)
    machine.start()
    assert machine.save(10, folder).json()["committed"]
    content, weights = small_adapter()
    assert machine.finish(10, archive or content, weights).status_code == 204
    provider.liveness[machine.lease] = Liveness.ENDED
    reconcile(api.app.context)
    return job


def ended(person, job: str, form: str = "gguf-adapter") -> dict:
    """The export once it has ended."""

    def look():
        found = person.get(f"/jobs/{job}/exports/{form}").json()
        return found if found["state"] in ("succeeded", "failed") else None

    return wait_for(look, "the export")


def test_an_export_by_the_real_exporter(make_server, provider, tmp_path, sqlite_template):
    """The process is the real one. Its files are those of the report, whole and in ranges."""
    base = make_model(tmp_path / "models" / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base)
    shutil.copyfile(sqlite_template, tmp_path / "trainhop.db")
    app = make_server(f"sqlite:///{tmp_path / 'trainhop.db'}", allowed_folders=(tmp_path / "models",))
    with TestClient(make_app(app), base_url="http://127.0.0.1") as client:
        api = Api(app=app, client=client)
        ann = People.of(api).ann
        running(api).spare_bytes = 1 << 20
        archive, weights = packed(adapter)
        job = ann.submit(base_model=str(base))["id"]
        machine = Machine.launched(api, provider)
        machine.start()
        assert machine.save(10, tmp_path, base_sha256=base_sha256(base)).json()["committed"]
        assert machine.finish(10, archive, weights).status_code == 204
        made = ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
        assert (made.status_code, made.json()["report"]) == (202, None), made.text
        running(api).pool.submit(lambda: None).result()  # there is one thread for all exports
        found = ended(ann, job)
        assert (found["state"], found["type"], found["report"]["check"]["same"]) == ("succeeded", None, 1.0), found
        assert {file["name"] for file in found["report"]["files"]} == {"adapter.gguf", "Modelfile"}
        place = f"/jobs/{job}/exports/gguf-adapter/files/adapter.gguf"
        file = next(file for file in found["report"]["files"] if file["name"] == "adapter.gguf")
        answer = ann.get(place)
        assert sha256(answer.content).hexdigest() == file["sha256"]
        part = ann.get(place, headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, answer.content[4:8])
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
        assert f"--lora {job}-gguf-adapter/adapter.gguf" in found["report"]["commands"]["llama.cpp"]
        assert str(tmp_path / "data") not in str(found)
        text = ann.get(f"/jobs/{job}/exports/gguf-adapter/files/Modelfile").text
        assert "ADAPTER ./adapter.gguf" in text


def test_an_export_is_its_owners_and_has_no_other_files(api1, people, provider, tmp_path, exporter):
    job = trained(api1, provider, people.ann, tmp_path)
    assert people.bob.post(f"/jobs/{job}/exports", GGUF_ADAPTER).status_code == 404
    assert people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER).status_code == 202
    exporter.begun.acquire()
    place = f"/jobs/{job}/exports/gguf-adapter"
    shown = people.ann.get(place).json()
    assert (shown["state"], shown["doing"]) == ("running", f"writing {job}/gguf-adapter")
    assert people.ann.get(f"{place}/files/adapter.gguf").status_code == 404
    exporter.go_on.release()
    assert ended(people.ann, job)["state"] == "succeeded"
    for path in (place, f"{place}/files/adapter.gguf"):
        assert (people.ann.get(path).status_code, people.bob.get(path).status_code) == (200, 404)
    assert people.bob.call("DELETE", place).status_code == people.bob.get(f"/jobs/{job}/exports").status_code == 404
    (running(api1).folder / job / "secret").write_text("of another kind")
    for name in ("none", "trainhop-export.json", "..%2Fsecret", "%2e%2e", "../secret"):
        assert people.ann.get(f"{place}/files/{name}").status_code == 404, name
    assert [each["format"] for each in people.ann.get(f"/jobs/{job}/exports").json()["items"]] == ["gguf-adapter"]
    assert people.ann.call("DELETE", place).status_code == 204
    assert people.ann.get(place).status_code == people.ann.call("DELETE", place).status_code == 404
    assert not (running(api1).folder / job / "gguf-adapter").exists()


def test_one_export_runs_at_a_time_and_one_of_each_member_waits(api1, people, provider, tmp_path, exporter):
    ann = [trained(api1, provider, people.ann, tmp_path) for _ in range(2)]
    bob = trained(api1, provider, people.bob, tmp_path)
    made = people.ann.post(f"/jobs/{ann[0]}/exports", GGUF_ADAPTER).json()
    again = people.ann.post(f"/jobs/{ann[0]}/exports", GGUF_ADAPTER)
    assert (again.status_code, again.json()["at"]) == (202, made["at"])
    exporter.begun.acquire()
    refused = people.ann.post(f"/jobs/{ann[1]}/exports", GGUF_ADAPTER)
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        f"Your export of job {ann[0]} is still running. Wait until it has ended.",
    )
    other = people.ann.post(f"/jobs/{ann[0]}/exports", {"format": "gguf-adapter", "onto": "nf4"})
    assert (other.status_code, "Remove that one first" in other.json()["detail"]) == (409, True)
    assert people.bob.post(f"/jobs/{bob}/exports", GGUF_ADAPTER).json()["state"] == "waiting"
    assert not exporter.begun.acquire(timeout=0.05)
    exporter.go_on.release(2)
    assert ended(people.ann, ann[0])["state"] == ended(people.bob, bob)["state"] == "succeeded"
    assert [request.out.parent.name for request in exporter.requests] == [ann[0], bob]


def test_so_many_wait_and_no_more(api1, people, provider, tmp_path, exporter):
    running(api1).most_waiting = 1
    job, other = (trained(api1, provider, person, tmp_path) for person in (people.ann, people.bob))
    assert people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER).status_code == 202
    assert people.bob.post(f"/jobs/{other}/exports", GGUF_ADAPTER).status_code == 503
    exporter.go_on.release()
    assert ended(people.ann, job)["state"] == "succeeded"


def test_an_export_can_be_cancelled_and_made_again(api1, people, provider, tmp_path, exporter):
    """Guard: the end of the first one forgot the second, which had been asked for meanwhile."""
    exporter.may_end.clear()
    job = trained(api1, provider, people.ann, tmp_path)
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    exporter.begun.acquire()
    assert people.ann.call("DELETE", f"/jobs/{job}/exports/gguf-adapter").status_code == 204
    assert people.ann.get(f"/jobs/{job}/exports").json()["items"] == []
    assert people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER).json()["state"] == "waiting"
    exporter.may_end.set()
    exporter.begun.acquire()
    assert [each["state"] for each in people.ann.get(f"/jobs/{job}/exports").json()["items"]] == ["running"]
    exporter.go_on.release()
    assert ended(people.ann, job)["state"] == "succeeded"
    assert len(exporter.requests) == 2


def test_a_failure_is_one_sentence_without_the_servers_folders(api1, people, provider, tmp_path, exporter):
    job = trained(api1, provider, people.ann, tmp_path)
    exporter.error = NotExported(f"The disk of {running(api1).folder}/x is full; nothing was published.")
    exporter.go_on.release()
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    assert ended(people.ann, job)["doing"] == "The disk of x is full; nothing was published."
    exporter.error = RuntimeError("secrets of the server")
    exporter.go_on.release()
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    wait_for(lambda: len(exporter.requests) == 2, "the second export")
    assert ended(people.ann, job)["doing"] == "The export failed. The server's log says why."
    assert list(running(api1).folder.glob(".work-*")) == []


def test_an_adapter_that_is_damaged_in_its_store_is_not_exported(api1, people, provider, tmp_path, exporter):
    job = trained(api1, provider, people.ann, tmp_path)
    with api1.app.context.uow() as tx:
        record = tx.jobs.get(job)
    assert record is not None
    path = api1.app.store.path(record.adapter_key)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"weights", b"WEIGHTS"))
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    assert "is damaged in its store" in ended(people.ann, job)["doing"]
    assert exporter.requests == []


@pytest.mark.parametrize("archive", [b"PK no archive", b""], ids=["damaged", "unsafe"])
def test_an_archive_that_cannot_be_unpacked_is_not_exported(api1, people, provider, tmp_path, exporter, archive):
    if not archive:
        with zipfile.ZipFile(made := io.BytesIO(), "w") as file:
            file.writestr("../../outside", b"x")
        archive = made.getvalue()
    job = trained(api1, provider, people.ann, tmp_path, archive)
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    assert ended(people.ann, job)["doing"].startswith("The archive ")
    assert exporter.requests == []
    assert not list(running(api1).folder.rglob("outside"))


def test_what_cannot_be_exported_is_refused_at_once(api1, people, provider, tmp_path, exporter):
    job = people.ann.submit()["id"]
    unfinished = people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    assert (unfinished.status_code, "Wait until it has succeeded" in unfinished.json()["detail"]) == (409, True)
    for wrong in ({}, {"format": "onnx"}, {"format": "gguf", "type": "q4"}, {"format": "gguf", "x": 1}):
        assert people.ann.post(f"/jobs/{job}/exports", wrong).status_code == 422
    assert people.ann.get(f"/jobs/{job}/exports/onnx").status_code == 422
    exporter.absent = "This server cannot export."
    refused = people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    assert (refused.status_code, refused.json()["detail"]) == (409, "This server cannot export.")


@pytest.mark.parametrize("is_running", [True, False])
def test_exports_are_deleted_with_their_job(api1, people, provider, tmp_path, exporter, is_running):
    job = trained(api1, provider, people.ann, tmp_path)
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    exporter.begun.acquire()
    if not is_running:
        exporter.go_on.release()
        ended(people.ann, job)
    assert people.ann.call("DELETE", f"/jobs/{job}").status_code == 204
    running(api1).close()
    assert list(running(api1).folder.iterdir()) == []


def test_an_export_of_a_job_that_is_deleted_at_its_end_is_removed(api1, people, provider, tmp_path, exporter):
    """The job goes between the last step of the exporter and its end."""
    job = trained(api1, provider, people.ann, tmp_path)
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    exporter.begun.acquire()
    with api1.app.context.uow() as tx:
        record = tx.jobs.get(job)
        assert record is not None
        record.deleted_at = 1.0
        tx.jobs.save(record)
    exporter.go_on.release()
    running(api1).close()
    assert not (running(api1).folder / job / "gguf-adapter").exists()
    assert running(api1).tasks == {}


def test_the_next_server_removes_what_a_killed_one_left(api1, people, provider, tmp_path, exporter, make_server):
    job = trained(api1, provider, people.ann, tmp_path)
    exporter.go_on.release()
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    exporter.begun.acquire()
    ended(people.ann, job)
    people.ann.post(f"/jobs/{job}/exports", {"format": "gguf"})
    exporter.begun.acquire()
    folder = running(api1).folder
    api1.app.close()
    assert not (folder / job / "gguf").exists()
    for left in (folder / ".work-abc", folder / job / ".gguf.12345678.part"):
        left.mkdir()
        (left / "file").write_bytes(b"half")
    again = make_server(api1.app.settings.url)
    assert sorted(path.name for path in folder.rglob("*")) == sorted(
        [job, "gguf-adapter", "adapter.gguf", "trainhop-export.json"]
    )
    found = adapter_exports.listed(again.context, job)
    assert [(each.settings.format, each.state.value) for each in found] == [(ExportFormat.GGUF_ADAPTER, "succeeded")]


def test_exports_are_kept_for_a_week(api1, people, provider, tmp_path, exporter, clock):
    job = trained(api1, provider, people.ann, tmp_path)
    exporter.go_on.release()
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    ended(people.ann, job)
    report = running(api1).folder / job / "gguf-adapter" / "trainhop-export.json"
    now = clock.now()
    (report.parent.with_name(".gguf.12345678.part")).mkdir()  # one that is being written
    for age, is_kept in ((adapter_exports.KEPT_S - 60, True), (adapter_exports.KEPT_S + 60, False)):
        os.utime(report, (now - age, now - age))
        adapter_exports.tidy(api1.app.context)
        assert report.exists() == is_kept
    exporter.error = NotExported("It failed.")
    exporter.go_on.release()
    people.ann.post(f"/jobs/{job}/exports", GGUF_ADAPTER)
    ended(people.ann, job)
    adapter_exports.tidy(api1.app.context)
    assert running(api1).tasks
    clock.tick(adapter_exports.KEPT_S + 60)
    adapter_exports.tidy(api1.app.context)
    assert not running(api1).tasks


def test_a_server_without_exports_says_so(api1, people):
    context = dataclasses.replace(api1.app.context, exports=None)
    assert adapter_exports.listed(context, "job-1") == []
    adapter_exports.tidy(context)
    with pytest.raises(ConflictError, match="makes no exports"):
        adapter_exports.start(context, _actor(api1, "ann"), "job-1", None)  # type: ignore[arg-type]


def _actor(api: Api, name: str):
    with api.app.context.uow() as tx:
        member = tx.members.get_by_name(name)
    assert member is not None
    return Actor(member_id=member.id, name=name, role=member.role)


def test_an_export_on_a_machine_is_downloaded_like_one_of_the_server(api, people, provider, tmp_path):
    """Owner only. The machine's token reads the adapter, and writes files of its own lease."""
    job = trained(api, provider, people.ann, tmp_path)
    assert people.bob.post(f"/jobs/{job}:export", {"format": "gguf"}).status_code == 404
    refused = people.ann.post(f"/jobs/{job}:export", {"format": "merged", "type": "q8_0"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/type")
    key = {"Idempotency-Key": "once"}
    answer = people.ann.post(f"/jobs/{job}:export", {"format": "gguf"}, headers=key)
    assert answer.status_code == 201, answer.text
    made = answer.json()["id"]
    assert people.ann.post(f"/jobs/{job}:export", {"format": "gguf"}, headers=key).json()["id"] == made
    machine = Machine.launched(api, provider)
    assert provider.launched[-1].exports
    machine.start()
    (adapter,) = machine.assignment["datasets"]
    path = adapter["url"].partition("/api/v1")[2]
    assert api.client.get(f"/api/v1{path}", headers=adapter["headers"]).content == small_adapter()[0]
    (shown,) = people.ann.get(f"/jobs/{job}/machine-exports").json()["items"]
    assert (shown["id"], shown["state"], shown["report"]) == (made, "running", None)
    place = f"/jobs/{made}/machine-exports/files/Modelfile"
    assert people.ann.get(place).status_code == 404
    assert finish_export(machine).status_code == 204
    provider.liveness[machine.lease] = Liveness.ENDED
    reconcile(api.app.context)
    (shown,) = people.ann.get(f"/jobs/{made}/machine-exports").json()["items"]
    assert (shown["job"], shown["format"], shown["type"], shown["onto"]) == (job, "gguf", None, "original")
    assert (shown["state"], [file["name"] for file in shown["report"]["files"]]) == ("succeeded", list(FILES))
    found = people.ann.get(place)
    assert (found.content, found.headers["etag"]) == (FILES["Modelfile"], f'"{shown["report"]["files"][1]["sha256"]}"')
    part = people.ann.get(place, headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"FROM")
    assert people.bob.get(place).status_code == people.bob.get(f"/jobs/{made}/machine-exports").status_code == 404
    assert people.ann.get(f"/jobs/{made}/machine-exports/files/other").status_code == 404
    assert people.ann.call("DELETE", f"/jobs/{made}").status_code == 204
    assert people.ann.get(f"/jobs/{job}/machine-exports").json()["items"] == []
