"""The time that rows are rendered with, and what submit and plan say of rows that no session could train on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from benchmarks.tiny_model import byte_tokenizer
from orchestrator.adapters.database import tables
from orchestrator.adapters.token_preview import TokenLooks
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.jobs import Lease
from orchestrator.ports.catalog import TokenLook
from orchestrator.services import clones, datasets, jobs, plans
from orchestrator.services.dispatch import dispatch
from orchestrator.services.repeated_steps import CHECKSUM
from orchestrator.services.worker_messages import receive
from tests.helpers.world import FakeCatalog, Worker, World
from tests.worker.test_look import asked
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import ENCODING, JobSpec
from worker.shared.manifest import Fidelity
from worker.shared.messages import MetricRow, Phase, Report
from worker.training.token_preview import preview_tokens

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def spec_of(world: World, job: str) -> dict[str, object]:
    return dict(world.job(job).spec)


def test_a_job_is_rendered_with_the_time_of_its_submission(world: World) -> None:
    """Guard: without it in the resolved job every machine rendered with its own clock; inside the job file that is sent
    it would stop an older worker.
    """
    submitted_at = round(world.clock.now())
    job = world.submit("alice", 4)
    world.clock.tick(90_000)
    assert spec_of(world, job)["rendered_at"] == submitted_at
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    assignment = worker.start()
    assert assignment is not None
    assert assignment.whole_spec.rendered_at == assignment.rendered_at == submitted_at
    assert "rendered_at" not in json.loads(assignment.model_dump_json())["spec"]


def test_a_clone_keeps_the_time_of_its_original(world: World) -> None:
    """Guard: without it a clone of a checkpoint was refused by its first session, a day later."""
    job = world.submit("alice", 4)
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    worker.step = 2
    worker.save()
    head, wanted = world.head(job).sha256, spec_of(world, job)["rendered_at"]
    world.clock.tick(90_000)
    for begin in (None, head):
        copy = clones.clone(world.ctx, world.actors["alice"], job, {"rendered_at": None}, checkpoint=begin)
        assert copy.spec["rendered_at"] == wanted
        form = {key: value for key, value in spec_of(world, job).items() if key != "rendered_at"}
        as_form = JobSpec.model_validate(form)
        again = clones.submit_clone(world.ctx, world.actors["alice"], as_form, job, checkpoint=begin)
        assert again.spec["rendered_at"] == wanted
    with pytest.raises(InvalidError) as refused:
        clones.clone(world.ctx, world.actors["alice"], job, {"rendered_at": 5.0}, checkpoint=head)
    assert [pointer for pointer, _ in refused.value.problems] == ["/rendered_at"]
    assert clones.clone(world.ctx, world.actors["alice"], job, {"rendered_at": 5.0}).spec["rendered_at"] == 5.0


class Counted:
    """A server's looks, and how often it was asked. `answer` replaces the real one."""

    def __init__(self, real: TokenLooks, answer: TokenLook | None = None) -> None:
        self.real, self.answer, self.asked = real, answer, 0

    def has(self, model: str) -> bool:
        return self.real.has(model)

    def of(self, *given: Any, **more: Any) -> TokenLook:
        self.asked += 1
        return self.answer or self.real.of(*given, **more)


def data(world: World, folder: Path, *answers: str) -> DatasetSpec:
    """An upload of alice's with a row per answer."""
    turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}] for answer in answers]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    stored = datasets.add_dataset(world.ctx, "alice", file, "rows.jsonl")
    return DatasetSpec(path=f"sha256:{stored.sha256}")


def model_in(folder: Path) -> Path:
    """A tokenizer with one token more than its model has."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokenizer) - 1}))
    return folder


@only_sqlite
def test_submit_and_plan_say_what_the_preview_says(world: World, tmp_path: Path) -> None:
    """Guard: without the look in `resolve` the job was queued, and its first session failed it for good."""
    model = model_in(tmp_path / "model")
    looks = Counted(TokenLooks(FakeCatalog(), offline=True))
    world.ctx = replace(world.ctx, looks=looks)
    spec = JobSpec(base_model=str(model), datasets=(data(world, tmp_path, "fine", "<|more|>"),), max_steps=1)
    seen = preview_tokens(asked(model, tmp_path / "rows.jsonl", RowFormat.MESSAGES, FileFormat.JSONL))
    assert seen["fault"].startswith("row 2 of the dataset has token ")
    for call in (jobs.submit, plans.plan):
        with pytest.raises(InvalidError, match="The data cannot be trained on with this model") as refused:
            call(world.ctx, world.actors["alice"], spec)
        assert list(refused.value.problems) == [("/datasets/0/path", seen["fault"])]
    assert looks.asked == 1, "the second refusal came from memory"
    elsewhere = spec.model_copy(update={"base_model": "org/model"})
    assert jobs.submit(world.ctx, world.actors["alice"], elsewhere).is_new, "its tokenizer is not here"


@only_sqlite
def test_submit_and_plan_say_the_previews_findings(world: World, tmp_path: Path) -> None:
    """Guard: without `findings` in what `judge_rows` keeps, only the preview and a session's log told them."""
    model = model_in(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    looks = Counted(TokenLooks(FakeCatalog(), offline=True))
    world.ctx = replace(world.ctx, looks=looks)
    given = (data(world, tmp_path, "fine"), data(world, tmp_path, "fine too"))
    spec = JobSpec(base_model=str(model), datasets=given, max_steps=1, num_epochs=1)
    asked_for = asked(model, tmp_path / "rows.jsonl", RowFormat.MESSAGES, FileFormat.JSONL)
    (finding,) = preview_tokens(asked_for)["findings"]
    assert "the model stops only at" in finding
    wanted = plans.plan(world.ctx, world.actors["alice"], spec).notes
    assert [words for words in wanted if words[:12] == finding[:12]] == [*wanted[1:]]
    assert finding in wanted
    assert wanted[0].startswith("num_epochs has no effect")
    queued = jobs.submit(world.ctx, world.actors["alice"], spec, key="k")
    again = jobs.submit(world.ctx, world.actors["alice"], spec, key="k")
    assert queued.notes == again.notes == wanted
    with world.ctx.uow() as tx:
        (told,) = tx.events.after(0, job_id=queued.job.id, limit=9)
    assert told.reason == " ".join(wanted)
    assert looks.asked == 2, "once for each file, however often it is submitted"


class Noted:
    """Looks that keep the version of the rows that they were asked for."""

    def __init__(self) -> None:
        self.encodings: list[int | None] = []

    def has(self, model: str) -> bool:
        return True

    def of(self, *given: Any, encoding: int | None = None, **more: Any) -> TokenLook:
        self.encodings.append(encoding)
        return TokenLook(findings=(f"encoding {encoding}",))


def test_a_clone_is_judged_by_the_rows_that_it_trains_on(world: World, engine: Engine) -> None:
    """Guard: without `begun` in `submit_clone` the clone of an older job's checkpoint was judged by rows that
    it does not train on, and could be refused for them.
    """
    looks = Noted()
    world.ctx = replace(world.ctx, looks=looks)
    job = world.submit("alice", 4)
    older = spec_of(world, job) | {"encoding": 2}
    with engine.begin() as connection:
        connection.execute(tables.jobs.update().where(tables.jobs.c.id == job).values(spec=older))
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    assignment = worker.start()
    assert assignment is not None
    assert assignment.spec.encoding == 2
    worker.step = 2
    worker.save()
    head = world.head(job).sha256
    from_head = clones.clone(world.ctx, world.actors["alice"], job, {}, checkpoint=head)
    from_start = clones.clone(world.ctx, world.actors["alice"], job, {})
    assert [from_head.spec["encoding"], from_start.spec["encoding"]] == [2, ENCODING] == looks.encodings[::-1]
    assert jobs.notes_of(world.ctx, from_head.id) == ("encoding 2",)
    assert jobs.notes_of(world.ctx, from_start.id) == (f"encoding {ENCODING}",)


@only_sqlite
def test_what_is_no_fault_of_the_data_stops_no_job(world: World, tmp_path: Path) -> None:
    """Files that have something to learn only together are one job's data. A look that failed is tried again later."""
    model = model_in(tmp_path / "model")
    looks = Counted(TokenLooks(FakeCatalog(), offline=True), TokenLook(untaught="no row has a trained token"))
    world.ctx = replace(world.ctx, looks=looks)
    first, second = data(world, tmp_path, "one"), data(world, tmp_path, "two")
    spec = JobSpec(base_model=str(model), datasets=(first,), max_steps=1)
    with pytest.raises(InvalidError) as refused:
        jobs.submit(world.ctx, world.actors["alice"], spec)
    assert list(refused.value.problems) == [("/datasets/0/path", "no row has a trained token")]

    both = spec.model_copy(update={"datasets": (first, second)})
    looks.answer = TokenLook(away="busy")
    for _ in range(2):
        assert jobs.submit(world.ctx, world.actors["alice"], both).is_new
    assert looks.asked == 2
    world.clock.tick(61)
    jobs.submit(world.ctx, world.actors["alice"], both)
    assert looks.asked == 3


def test_steps_that_are_trained_twice_are_compared(world: World) -> None:
    """Guard: without the comparison the second session was called exact, whatever rows it trained on."""

    def trains(worker: Worker, **checksums: int) -> Lease:
        assert worker.assignment is not None
        rows = tuple(MetricRow(step=int(step[1:]), values={CHECKSUM: value}) for step, value in checksums.items())
        worker.seq += 1
        ids = {"lease": worker.lease, "fence": worker.assignment.fence, "seq": worker.seq}
        receive(world.ctx, Report(**ids, step=0, phase=Phase.TRAIN, metrics=rows, fidelity=Fidelity.EXACT))
        with world.ctx.uow() as tx:
            lease = tx.leases.get(worker.lease)
        assert lease is not None
        return lease

    job = world.submit("alice", 9)
    workers: list[Worker] = []
    for _ in range(2):
        if workers:
            workers[0].release()
        dispatch(world.ctx)
        workers += [worker for worker in world.new_workers() if worker.lease not in {w.lease for w in workers}]
        workers[-1].start()
        if len(workers) == 1:
            assert trains(workers[0], s1=11, s2=22, s3=33).fidelity == "exact"
    again = workers[1]
    assert trains(again, s1=11).fidelity == "exact"
    assert trains(again, s2=22, s3=34).fidelity == "state-exact"
    assert trains(again, s3=35, s4=44).fidelity == "state-exact", "the label does not rise again"
    with world.ctx.uow() as tx:
        said = [event for event in tx.events.after(0, job_id=job, limit=100) if event.kind == "rows.differ"]
    assert [event.data["step"] for event in said] == [3]
    assert said[0].reason.startswith("step 3 trains on other rows than in an earlier session that was lost")
