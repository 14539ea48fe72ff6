"""Exports on machines, the server's part: what may be exported, the adapter it begins with, and its files; on both
databases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, StaleFenceError
from orchestrator.domain.exports import ExportFormat, ExportSettings, MachineExport, Onto, WeightType
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.stores import ObjectMissing, Usage
from orchestrator.services import assignments, clones, evaluations, jobs, machine_exports
from orchestrator.services.reconcile import reconcile
from tests.helpers.exporter import FILES, REPORT, described
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import Worker, World
from tests.services.test_evaluations import running, trained
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.messages import ExportedAdapter, Finish, GrantKind
from worker.shared.results import MAX_EXPORT_BYTES, StoredExport

GGUF = ExportSettings(format=ExportFormat.GGUF)


def started(world: World, job: str, settings: ExportSettings = GGUF, who: str = "alice", key: str | None = None) -> str:
    return machine_exports.start(world.ctx, world.actors[who], job, settings, key=key).job.id


def shown(world: World, job: str) -> MachineExport:
    ((export, _),) = machine_exports.exports_of(world.ctx, world.actors["alice"], job)
    return export


def uploaded(worker: Worker, files: Mapping[str, bytes] = FILES) -> list[dict[str, Any]]:
    """The files, under grants of their own, as a machine describes them."""
    assert worker.assignment is not None
    fence = worker.assignment.fence
    grants = assignments.grants(worker.world.ctx, worker.lease, fence, GrantKind.EXPORT, len(files))
    for grant, content in zip(grants, files.values(), strict=True):
        path = Path(grant.path or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [described(grant.key, *file) for grant, file in zip(grants, files.items(), strict=True)]


def last_message(worker: Worker, files: list[dict[str, Any]]) -> Finish:
    done = StoredExport.model_validate({"files": files, "report": REPORT})
    return Finish(**worker._said(), step=1, export=done)


def finish(worker: Worker) -> None:
    message = last_message(worker, uploaded(worker))
    worker.last = lambda: worker.send(message)
    worker.send(message)
    worker.world.machines.end(worker.lease)


def read(world: World, job: str, name: str) -> bytes:
    store, key, size, sha256 = machine_exports.file_of(world.ctx, world.actors["alice"], job, name)
    content = b"".join(world.stores.get(store).read(key))
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
    return content


def test_an_export_is_a_job_from_the_adapter_to_its_files(world: World) -> None:
    """A session that is cut leaves nothing: the next one begins with the adapter again."""
    job = trained(world)
    made = started(world, job)
    queued = world.job(made)
    assert (queued.cloned_from, queued.total_steps, queued.head, queued.gpu_bytes) == (job, 1, None, 0)
    worker = running(world)
    assert worker.assignment is not None
    (adapter,) = worker.assignment.datasets
    source = world.job(job)
    assert (adapter.kind, adapter.key, adapter.sha256) == (
        GrantKind.ADAPTER,
        source.adapter_key,
        source.adapter_zip_sha256,
    )
    assert worker.assignment.resume is None
    assert GrantKind.EXPORT in {grant.kind for grant in worker.assignment.uploads}
    assert worker.assignment.spec.export is not None
    assert (worker.assignment.spec.export.job, worker.assignment.spec.export.format) == (job, "gguf")
    lost = uploaded(worker)
    worker.release("drained")
    assert world.job(made).state is JobState.QUEUED
    first = worker
    worker = running(world)
    assert worker.assignment is not None
    assert (worker.assignment.resume, worker.assignment.datasets[0].sha256) == (None, source.adapter_zip_sha256)
    with pytest.raises(StaleFenceError):
        first.send(last_message(first, lost))
    finish(worker)
    worker.last()  # a repeated message changes nothing
    done = world.job(made)
    assert (done.state, done.head_step, done.adapter_key) == (JobState.SUCCEEDED, 1, None)
    reconcile(world.ctx)  # cleans up after the sessions
    report = shown(world, job).report
    assert report is not None
    assert (report["check"]["same"], [file["name"] for file in report["files"]]) == (1.0, list(FILES))
    assert {name: read(world, made, name) for name in FILES} == FILES
    with pytest.raises(ObjectMissing):
        list(world.store.read(lost[0]["key"]))
    with pytest.raises(NotFoundError, match="has no file"):
        read(world, job, "Modelfile")  # the files are those of the export's own job
    with pytest.raises(NotFoundError):
        machine_exports.file_of(world.ctx, world.actors["bob"], made, "Modelfile")


def test_with_its_job_an_export_goes_and_its_adapter_stays_until_then(world: World) -> None:
    """Guards: with `refuse_unfinished` removed, the adapter of a queued export was deleted; with
    `refuse_without_adapter`, an export without an adapter was queued; with `discard`, its files stayed for ever."""
    alice = world.actors["alice"]
    job = trained(world)
    reconcile(world.ctx)
    first, second = started(world, job), started(world, job, ExportSettings(format=ExportFormat.GGUF_ADAPTER))
    jobs.cancel(world.ctx, alice, second)
    with pytest.raises(ConflictError, match=f"Job {first} exports the adapter of job {job}"):
        jobs.delete(world.ctx, alice, job)
    finish(running(world))
    reconcile(world.ctx)
    keys = shown(world, first).keys
    assert keys is not None
    with world.ctx.uow() as tx:
        assert tx.stores.count_kept("local") > 0
    jobs.delete(world.ctx, alice, job)
    assert read(world, first, "Modelfile") == FILES["Modelfile"]
    with world.ctx.uow() as tx:
        assert tx.stores.count_kept("local") == 1, "the export is kept there"
    with pytest.raises(ConflictError, match="was deleted, so it cannot be exported again"):
        jobs.retry(world.ctx, alice, second)
    jobs.delete(world.ctx, alice, first)
    assert world.store.keys(f"jobs/{first}/f1/") == []


def test_what_cannot_be_exported_is_refused_before_it_is_queued(world: World) -> None:
    alice = world.actors["alice"]
    unfinished = world.submit("alice", 4)
    with pytest.raises(ConflictError, match=r"has no adapter that can be exported\. Wait"):
        started(world, unfinished)
    jobs.cancel(world.ctx, alice, unfinished)
    job = trained(world)
    for settings, words in (
        (ExportSettings(format=ExportFormat.MERGED, type=WeightType.Q8_0), "in fp16 or bf16"),
        (ExportSettings(format=ExportFormat.GGUF_ADAPTER, type=WeightType.FP16), "is in fp32"),
        (ExportSettings(format=ExportFormat.GGUF_ADAPTER, onto=Onto.NF4), "is in fp32"),
        (ExportSettings(format=ExportFormat.MERGED, onto=Onto.NF4), "was not trained with qlora"),
    ):
        with pytest.raises(InvalidError, match=words):
            started(world, job, settings)
    dora, tokens = trained(world, peft_use_dora=True), trained(world, peft_trainable_token_indices=[1])
    with pytest.raises(InvalidError, match="has no place for DoRA's magnitudes; export it as merged or gguf"):
        started(world, dora, ExportSettings(format=ExportFormat.GGUF_ADAPTER))
    with pytest.raises(InvalidError, match="has no place for trained tokens; export it as merged or gguf"):
        started(world, tokens, ExportSettings(format=ExportFormat.GGUF_ADAPTER))
    experts = trained(world, lora_target_parameters=["mlp.experts.down_proj"])
    for form in ExportFormat:
        with pytest.raises(
            InvalidError, match=r"adapters of experts .* cannot be exported; load the adapter with PEFT"
        ):
            started(world, experts, ExportSettings(format=form))
    with pytest.raises(NotFoundError):
        started(world, job, who="bob")
    made = started(world, job, key="k")
    assert started(world, job, key="k") == made
    with pytest.raises(ConflictError, match="was used for another request"):
        started(world, job, ExportSettings(format=ExportFormat.MERGED), key="k")
    with pytest.raises(ConflictError, match="has no adapter"):
        started(world, made)
    with pytest.raises(ConflictError, match="is an export"):
        evaluations.evaluate(world.ctx, alice, made, EvaluationSpec())
    with pytest.raises(InvalidError, match="An export is started from a trained job"):
        clones.clone(world.ctx, alice, made, {})
    with pytest.raises(InvalidError, match="An export is started from a trained job"):
        jobs.submit(world.ctx, alice, JobSpec.model_validate(world.job(made).spec))


def test_a_model_that_cannot_be_exported_takes_no_machine(world1: World) -> None:
    """Guard: without the look at its type a machine loaded the model, and then the export failed."""
    for kind in ("gpt2", "gemma3"):
        job = trained(world1, base_model=f"org/{kind}")
        with pytest.raises(InvalidError, match=f"org/{kind}: models of the type {kind} cannot be exported; there are"):
            started(world1, job)
    started(world1, trained(world1, base_model="org/qwen2"))


def test_a_store_without_room_refuses_an_export_before_the_work(world1: World) -> None:
    """Guard: without `_refuse_full_store` an hour of a machine ended with a file that no store could take."""
    job = trained(world1)
    world1.store.room = Usage(used=0, free=10 << 30)
    started(world1, job)  # the size of the model is not known
    world1.catalog.parameters = 7 << 30
    with pytest.raises(ConflictError, match=r"about 14\.0 GiB in the store local, and 10\.0 GiB are free"):
        started(world1, job)
    started(world1, job, ExportSettings(format=ExportFormat.GGUF, type=WeightType.Q8_0))
    started(world1, job, ExportSettings(format=ExportFormat.GGUF_ADAPTER))
    world1.store.room = Usage(used=0, free=None)
    started(world1, job)
    world1.catalog.parameters = 1 << 38
    with pytest.raises(ConflictError, match=r"would have about 512 GiB\. An export on a machine may have 256"):
        started(world1, job)


def test_a_file_that_no_machine_can_send_is_refused_before_the_work(world1: World) -> None:
    """Guard: without `_refuse_large_file` a machine made a file that this server did not take."""
    job = trained(world1)
    world1.store.room = Usage(used=0, free=None)
    world1.catalog.parameters = 7 << 30
    started(world1, job)  # the machines share the disk
    world1.machines.capabilities = far = replace(world1.machines.capabilities, shares_disk=False)
    with pytest.raises(ConflictError, match=r"about 14\.0 GiB\. Your machines send at most 4\.0 GiB in one file"):
        started(world1, job)
    started(world1, job, ExportSettings(format=ExportFormat.MERGED))  # in several files
    world1.machines.capabilities = replace(far, same_network=False)
    started(world1, job)  # their provider hands the files over


def test_the_files_of_an_export_are_read_back(world1: World) -> None:
    """Guards: each check of `check_export` removed let one of these end the job."""
    made = started(world1, trained(world1))
    worker = running(world1)
    files = uploaded(worker)
    first, second = files
    refused: list[tuple[list[dict[str, Any]], str]] = [
        ([first | {"key": "jobs/other/f1/aa.bin"}], "outside this lease's folder"),
        ([first | {"key": second["key"] + "x"}], "was not uploaded"),
        ([first | {"sha256": "0" * 64}], "differs from the reported one"),
        ([first, second | {"name": first["name"]}], "Two files of the export are the same"),
        ([first, second | {"key": first["key"]}], "Two files of the export are the same"),
        ([first | {"size": MAX_EXPORT_BYTES}, second], f"It may have {MAX_EXPORT_BYTES}"),
    ]
    for described_files, words in refused:
        with pytest.raises(InvalidError, match=words):
            worker.send(last_message(worker, described_files))
    adapter = ExportedAdapter(adapter_sha256="0" * 64, **{k: v for k, v in first.items() if k != "name"})
    with pytest.raises(InvalidError, match="The export is missing"):
        worker.send(Finish(**worker._said(), step=1, adapter=adapter))
    assert world1.job(made).state is JobState.RUNNING
    worker.send(last_message(worker, files))
    assert world1.job(made).state is JobState.SUCCEEDED


def test_a_training_job_does_not_end_with_an_export(world1: World) -> None:
    job = world1.submit("alice", 2)
    worker = running(world1)
    worker.step = 2
    assert worker.save().committed
    with pytest.raises(InvalidError, match="The adapter is missing"):
        worker.send(last_message(worker, uploaded(worker)))
    assert world1.job(job).state is JobState.RUNNING


def test_names_and_numbers_of_a_machine_have_limits() -> None:
    for name in ("../evil", ".hidden", "a/b", "x" * 101, ""):
        with pytest.raises(ValueError, match="name"):
            StoredExport.model_validate({"files": [described("k", name, b"")], "report": REPORT})
    file = described("k", "a", b"")
    with pytest.raises(ValueError, match="at most 64"):
        StoredExport.model_validate({"files": [file] * 65, "report": REPORT})
    for error in (float("nan"), float("inf"), -1.0):
        wrong = REPORT | {"check": REPORT["check"] | {"error": error}}
        with pytest.raises(ValueError, match="error"):
            StoredExport.model_validate({"files": [file], "report": wrong})


def test_files_that_a_machine_kept_are_those_of_the_export(engine: Engine, tmp_path: Path) -> None:
    """Guard: with the ending of an export's files missing in `_is_of`, what the machine had kept was not collected."""
    world = OfflineWorld(engine, tmp_path)

    def at_work() -> Any:
        worker: Any = running(world)
        worker.holding = True
        return worker

    job = world.submit("alice", 2)
    worker = at_work()
    worker.step = 2
    worker.save()
    worker.finish()
    reconcile(world.ctx)
    assert world.job(job).state is JobState.SUCCEEDED
    made = started(world, job)
    worker = at_work()
    (request,) = [each for each in world.machines.launched if each.lease_id == worker.lease]
    assert request.exports
    (adapter,) = worker.assignment.datasets
    assert b"".join(request.inputs[adapter.key]()) == f"adapter of {job}".encode()
    assert {grant.kind for grant in worker.assignment.uploads} == {GrantKind.EXPORT}
    files: list[dict[str, Any]] = []
    for number, (name, content) in enumerate(FILES.items()):
        (tmp_path / name).write_bytes(content)
        key = f"jobs/{made}/f1/{number:016x}.bin"
        worker.session.files[key] = tmp_path / name
        files.append(described(key, name, content))
    worker._say(last_message(worker, files))
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert world.job(made).state is JobState.SUCCEEDED
    assert {name: read(world, made, name) for name in FILES} == FILES
