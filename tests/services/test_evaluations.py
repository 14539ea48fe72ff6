"""The server's part of an evaluation: what may be evaluated, its checkpoints, and its answers; on both databases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.storage import Dataset, Upload
from orchestrator.services import assignments, clones, evaluations, jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.evaluation_report import repeats
from orchestrator.services.reconcile import reconcile
from tests.helpers.evaluations import stored_answers
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import Worker, World
from worker.shared import answers_file, checkpoint_file
from worker.shared.answers_file import Extras, LeftOut
from worker.shared.checkpoint_header import ANSWERS
from worker.shared.dataset_spec import DatasetSpec
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.evaluation_units import PASSAGES
from worker.shared.messages import Failure, Finish, GrantKind, Offer, OfferReply, Origin, StoredAnswers


def running(world: World) -> Worker:
    """The worker of the next session, started."""
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    return worker


def trained(world: World, who: str = "alice", **extra: Any) -> str:
    """A job that has succeeded, with checkpoints of the steps 2 and 4."""
    job = world.submit(who, 4, **({"val_set_size": 0.9} | extra))
    worker = running(world)
    for step in (2, 4):
        worker.step = step
        assert worker.save().committed
    worker.finish()
    return job


def started(world: World, job: str, who: str = "alice", checkpoint: str | None = None, **settings: Any) -> str:
    asked = EvaluationSpec(**settings)
    return evaluations.evaluate(world.ctx, world.actors[who], job, asked, checkpoint=checkpoint).job.id


def stored_evaluation(world: World, job: str) -> Evaluation:
    with world.ctx.uow() as tx:
        found = tx.evaluations.get(job)
    assert found is not None
    return found


def results(prompts: int, *, adapter: str = "four", rise: float = 0.0, **flags: Any) -> bytes:
    """What the units of an evaluation give."""
    lines: list[dict[str, Any]] = []
    for number in range(prompts):
        for arm, text in (("base", f"It is {number}."), ("adapter", f"{adapter} {number}.")):
            plain = {"tokens": 3, "truncated": False, "leaked": False}
            lines.append({"arm": arm, "number": number, "text": text} | plain | (flags if arm == "adapter" else {}))
    for number in range(PASSAGES):
        base = 3.0 + number % 7 / 10
        for arm, loss in (("base", base), ("adapter", base + rise + number % 3 / 1000)):
            lines.append({"arm": arm, "number": number, "loss": loss, "tokens": 99})
    return b"".join(map(answers_file.json_line, lines))


def answers(
    prompts: int,
    left_out: LeftOut | None = None,
    own_answers: Sequence[str] | None = None,
    more: bytes = b"",
    tasks: Mapping[str, Any] | None = None,
    **how: Any,
) -> bytes:
    """`more` are further results, `tasks` the parts of `Extras` that they belong to."""
    asked = [[{"role": "user", "content": f"What is {number}?"}] for number in range(prompts)]
    extras = Extras(own_answers=own_answers or [""] * prompts, **tasks or {}) if own_answers or tasks else None
    return answers_file.written(asked, left_out or LeftOut(), results(prompts, **how) + more, extras)


def offered(worker: Worker, step: int, tensors: dict[str, Any] | None = None) -> OfferReply:
    """A checkpoint of an evaluation."""
    assert worker.assignment is not None
    worker.step = step
    manifest = worker.manifest()
    (grant,) = assignments.grants(worker.world.ctx, worker.lease, worker.assignment.fence, GrantKind.CHECKPOINT, 1)
    target = Path(grant.path or "")
    target.parent.mkdir(parents=True, exist_ok=True)
    plain = {"adapter.w": np.zeros(4, np.float32), ANSWERS: np.zeros(step, np.uint8)}
    sha256, size = checkpoint_file.write(target, plain | (tensors or {}), manifest)
    said = worker._said()
    reply = worker.send(Offer(**said, key=grant.key, sha256=sha256, size=size, manifest=manifest))
    if reply.committed:
        worker.parent = sha256
    return reply


def finish(worker: Worker, content: bytes, **changes: Any) -> None:
    """Upload the answers and send the last message."""
    assert worker.assignment is not None
    grant = next(grant for grant in worker.assignment.uploads if grant.kind is GrantKind.ANSWERS)
    path = Path(grant.path or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    said = {"key": grant.key, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} | changes
    message = Finish(**worker._said(), step=worker.step, answers=StoredAnswers(**said))
    worker.last = lambda: worker.send(message)
    worker.send(message)
    worker.world.machines.end(worker.lease)


def test_an_evaluation_is_a_job_from_the_last_checkpoint_to_its_report(world: World) -> None:
    job = trained(world)
    made = started(world, job, max_prompts=35)
    shown = world.job(made)
    assert (shown.first_step, shown.head_step, shown.cloned_from) == (0, 0, job)
    assert shown.total_steps == 2 * 6 + 2 * 4 + 2 * 2 + 2 * 4
    worker = running(world)
    assert worker.assignment is not None
    assert worker.assignment.origin == Origin(job=job, fence=1, step=4)
    assert (worker.assignment.resume_step, worker.assignment.spec.max_steps) == (0, 4)
    assert {grant.kind for grant in worker.assignment.uploads} == {GrantKind.CHECKPOINT, GrantKind.ANSWERS}
    assert offered(worker, 7).committed
    worker.release()
    worker = running(world)
    assert worker.assignment is not None
    assert (worker.assignment.origin, worker.assignment.resume_step) == (None, 7)
    assert offered(worker, shown.total_steps).committed
    content = answers(35)
    finish(worker, content)
    worker.last()  # a repeated message changes nothing
    assert world.job(made).state is JobState.SUCCEEDED
    assert world.job(made).adapter_key is None
    evaluation = stored_evaluation(world, made)
    assert evaluation.answers_sha256 == hashlib.sha256(content).hexdigest()
    assert (evaluation.trained_job, evaluation.owner) == (job, "alice")
    assert evaluation.adapter_sha256 == world.job(job).adapter_sha256
    asked = {"max_prompts": 35, "max_new_tokens": 256, "temperature": 0.0, "prompts": None, "measures": 2}
    assert evaluation.settings == asked
    with world.ctx.uow() as tx:
        found = stored_answers(tx, made)
    assert len(found) == 35
    assert (found[3].prompt, found[3].base, found[3].adapter) == (
        [{"role": "user", "content": "What is 3?"}],
        "It is 3.",
        "four 3.",
    )
    report = evaluation.report
    assert report is not None
    assert report["forgetting"]["harm"] == "none"
    assert report == report | {
        "prompts": 35,
        "truncated": {"base": 0.0, "adapter": 0.0},
        "tokens": {"base": 3.0, "adapter": 3.0},
        "identical": 0,
        "refusals": {"base": 0.0, "adapter": 0.0},
        "repetition": {"base": 0.0, "adapter": 0.0},
        "template_leaks": {"base": 0.0, "adapter": 0.0},
        "similarity": None,
        "instructions": None,
        "harmless": None,
        "tasks": None,
        "vetoes": [],
        "warnings": [],
    }
    (listed, _), *others = evaluations.evaluations_of(world.ctx, world.actors["alice"], job)
    assert (listed.job_id, others) == (made, [])
    assert evaluations.evaluations_of(world.ctx, world.actors["alice"], made)[0][0].job_id == made


def test_what_cannot_be_evaluated_is_refused_in_one_sentence(world: World) -> None:
    """Guards: each refusal was taken out once."""
    without = trained(world, val_set_size=0.0)
    with pytest.raises(InvalidError, match=r"no validation rows to take prompts from. Give a file of prompts"):
        started(world, without)
    with pytest.raises(InvalidError, match=r"There is no dataset 111111111111. Upload the file first"):
        started(world, without, prompts=DatasetSpec(path="sha256:" + "1" * 64))
    fresh = world.submit("alice", 4, val_set_size=0.5)
    with pytest.raises(ConflictError, match=r"has no checkpoint to evaluate. Wait until it has saved one"):
        started(world, fresh)
    jobs.cancel(world.ctx, world.actors["alice"], fresh)
    job, other = trained(world), trained(world)
    with pytest.raises(NotFoundError, match=f"Job {job} has no checkpoint {world.job(other).head[:12]}"):  # pyright: ignore[reportOptionalSubscript]
        started(world, job, checkpoint=world.job(other).head)
    with pytest.raises(NotFoundError, match="There is no job"):
        started(world, job, who="bob")
    made = started(world, job)
    with pytest.raises(ConflictError, match=r"is an evaluation itself. Evaluate the job that it evaluates"):
        started(world, made)
    with pytest.raises(InvalidError, match="An evaluation is started from a trained job"):
        world.submit("alice", 4, evaluation={})
    with pytest.raises(InvalidError, match="An evaluation is started from a trained job"):
        clones.clone(world.ctx, world.actors["alice"], made, {"name": "again"})


def test_an_earlier_checkpoint_has_no_adapter_file_to_promote(world: World) -> None:
    job = trained(world)
    with world.ctx.uow() as tx:
        earlier = next(c.sha256 for c in tx.checkpoints.of_job(job) if c.step == 2)
    made = stored_evaluation(world, started(world, job, checkpoint=earlier))
    assert (made.checkpoint_sha256, made.adapter_sha256) == (earlier, None)
    assert stored_evaluation(world, started(world, job)).adapter_sha256 == world.job(job).adapter_sha256


def test_few_prompts_are_allowed_with_a_note(world: World) -> None:
    job = trained(world)
    asked = EvaluationSpec(max_prompts=29)
    found = evaluations.evaluate(world.ctx, world.actors["alice"], job, asked, key="once")
    assert found.notes == ("There are only 29 prompts. A verdict needs at least 30, and 100 are better.",)
    again = evaluations.evaluate(world.ctx, world.actors["alice"], job, asked, key="once")
    assert (again.job.id, again.is_new, again.notes) == (found.job.id, False, found.notes)
    with pytest.raises(ConflictError, match="was used for another request"):
        evaluations.evaluate(world.ctx, world.actors["alice"], job, EvaluationSpec(), key="once")


def test_a_file_of_prompts_is_all_that_a_session_reads(world: World) -> None:
    """Its rows need no training data."""
    job = trained(world, val_set_size=0.0)
    rows = hashlib.sha256(b"prompts").hexdigest()
    with world.ctx.uow() as tx:
        for kind, sha256 in (("messages", rows), ("text", "2" * 64)):
            made = Dataset(
                sha256=sha256, size=7, file_format="jsonl", row_format=kind, rows=50, name="prompts",
                member_id="alice", created_at=1.0, key=f"datasets/{sha256}",
            )  # fmt: skip
            tx.datasets.add(made)
            tx.datasets.add_upload(Upload(id=kind, sha256=sha256, member_id="alice", name="p", created_at=1.0))
    (world.folder / "prompts").write_bytes(b"prompts")
    world.store.put(f"datasets/{rows}", world.folder / "prompts")
    with pytest.raises(InvalidError, match="Rows of plain text have no prompts"):
        started(world, job, prompts=DatasetSpec(path="sha256:" + "2" * 64))
    made = started(world, job, prompts=DatasetSpec(path=f"sha256:{rows}"))
    assert world.job(made).total_steps == 2 * 9 + 2 * 4 + 2 * 2 + 2 * 4
    worker = running(world)
    assert worker.assignment is not None
    assert [grant.sha256 for grant in worker.assignment.datasets] == [rows]
    assert [entry.sha256 for entry in worker.assignment.spec.files] == [rows]


def test_a_checkpoint_that_is_not_of_this_evaluation_is_refused(world: World) -> None:
    """Guards: without `check_answers` all of these became the head. A training job may not bring answers."""
    job = trained(world)
    made = started(world, job)
    worker = running(world)
    assert offered(worker, 3).committed
    assert "2 bytes of answers, the one before 3" in offered(worker, 4, {ANSWERS: np.zeros(2, np.uint8)}).refusal
    assert "another adapter" in offered(worker, 4, {"adapter.w": np.zeros(5, np.float32)}).refusal
    assert "should be a row of bytes" in offered(worker, 4, {ANSWERS: np.zeros(9, np.int32)}).refusal
    assert world.job(made).head_step == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1 of the file of answers is not valid"),
        (answers(35).replace(b'"answers":1', b'"answers":5'), "has version 5, this program 4"),
        (answers(35)[:-30], "line 136 of the file of answers is not valid"),
        (answers(35) + b"{}\n", "has more lines than its first line says"),
        (answers(35).replace(b'"number":3,', b'"number":4,'), "does not have the prompts 0 to 34 in order"),
        (answers(35).replace(b'"tokens":3', b'"tokens":-3', 1), "line 2 .* is not valid at adapter.tokens"),
        (answers(35) + b"x" * 200_000, "line 137 of the file of answers is longer than"),
        (answers(35).replace(b'"passage":7}', b'"passage":8}'), "does not have the passages 0 to 99 in order"),
    ],
)
def test_a_bad_file_of_answers_is_refused_and_changes_nothing(world: World, content: bytes, words: str) -> None:
    made = started(world, trained(world))
    worker = running(world)
    assert offered(worker, world.job(made).total_steps).committed
    with pytest.raises(InvalidError, match=words):
        finish(worker, content)
    assert world.job(made).state is JobState.RUNNING
    assert stored_evaluation(world, made).report is None


def test_the_stored_file_is_read_back_before_it_counts(world: World) -> None:
    """Guards: without `_check_stored` the first two were taken, without the size the third was read."""
    made = started(world, trained(world))
    worker = running(world)
    assert offered(worker, world.job(made).total_steps).committed
    with pytest.raises(InvalidError, match="The stored file of the answers differs"):
        finish(worker, answers(35), sha256="0" * 64)
    with pytest.raises(InvalidError, match="is outside this lease's folder"):
        finish(worker, answers(35), key="jobs/other/f1/x.jsonl")
    with pytest.raises(InvalidError, match=r"They may have 100663296. Ask fewer prompts"):
        finish(worker, answers(35), size=97 << 20)
    with pytest.raises(InvalidError, match="The answers are missing"):
        worker.finish()


def test_a_training_job_does_not_end_with_answers(world: World) -> None:
    world.submit("alice", 4)
    worker = running(world)
    worker.step = 4
    assert worker.save().committed
    made = Finish(**worker._said(), step=4, answers=StoredAnswers(key="x", sha256="0" * 64, size=1))
    with pytest.raises(InvalidError, match="is outside this lease's folder"):
        worker.send(made)


def test_answers_that_a_machine_kept_are_adopted(engine: Engine, tmp_path: Path) -> None:
    """A machine that cannot call hands its files over at its end. Guard: `_is_of` must know their names."""
    world = OfflineWorld(engine, tmp_path)

    def at_work() -> Any:
        worker: Any = running(world)
        worker.holding = True
        return worker

    job = world.submit("alice", 4, val_set_size=0.9)
    worker = at_work()
    worker.step = 4
    worker.save()
    worker.finish()
    reconcile(world.ctx)
    assert world.job(job).state is JobState.SUCCEEDED
    made = started(world, job)
    worker = at_work()
    assert {grant.kind for grant in worker.assignment.uploads} == {GrantKind.CHECKPOINT, GrantKind.ANSWERS}
    worker.step = world.job(made).total_steps
    manifest, prefix = worker.manifest(), f"jobs/{made}/f1/{'0' * 15}"
    tensors = {"adapter.w": np.full(4, 4, np.float32), ANSWERS: np.zeros(9, np.uint8)}
    checkpoint, content = tmp_path / "checkpoint", answers(36)
    sha256, size = checkpoint_file.write(checkpoint, tensors, manifest)
    (tmp_path / "answers").write_bytes(content)
    worker.session.files |= {f"{prefix}1.safetensors": checkpoint, f"{prefix}2.jsonl": tmp_path / "answers"}
    offer = {"key": f"{prefix}1.safetensors", "sha256": sha256, "size": size, "manifest": manifest}
    file = {"key": f"{prefix}2.jsonl", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    worker._say(Offer(**worker._said(), **offer))
    worker._say(Finish(**worker._said(), step=worker.step, answers=StoredAnswers(**file), head=sha256))
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert world.job(made).state is JobState.SUCCEEDED
    assert stored_evaluation(world, made).answers_sha256 == file["sha256"]


def report_with(world: World, content: bytes) -> dict[str, Any]:
    made = started(world, trained(world))
    worker = running(world)
    assert offered(worker, world.job(made).total_steps).committed
    finish(worker, content)
    report = stored_evaluation(world, made).report
    assert report is not None
    return report


def test_harm_and_odd_answers_are_said_in_sentences(world: World) -> None:
    odd = "I cannot help with that. User: " + "again and again " * 12
    report = report_with(world, answers(20, LeftOut(too_long=2), adapter=odd, rise=0.3, truncated=True, tokens=64))
    assert report["forgetting"]["harm"] == "veto"
    assert report["vetoes"] == ["The adapter has forgotten general text: its loss is 0.30 nats per token higher."]
    words = " ".join(report["warnings"])
    for said in (
        "20 prompts are too few for a verdict",
        "2 rows gave no prompt: 2 are too long",
        "More than 10% of the answers were cut at the token limit",
        "refuses more often than the base model: 100% of its answers, 0% of the base model's",
        "repeats itself more often",
        "Answers of the adapter are more than 2 times as long",
    ):
        assert said in words, said


def test_equal_answers_and_leaked_tokens_are_said(world: World) -> None:
    report = report_with(world, answers(40, adapter="It is", rise=0.06, leaked=True))
    assert (report["identical"], report["template_leaks"]) == (40, {"base": 0.0, "adapter": 1.0})
    words = " ".join(report["warnings"])
    assert "answers every prompt exactly as the base model does" in words
    assert "more control tokens or role names" in words
    assert "may have forgotten general text: its loss changed by +0.06" in words


def test_repetition_is_found_in_words_and_in_characters() -> None:
    assert repeats("the same few words " * 8)
    assert repeats("哈" * 80)
    assert not repeats("Each of these words stands here once, so nothing in this sentence is said a second time today.")
    assert not repeats("yes")


def test_a_damaged_origin_does_not_let_an_evaluation_begin_without_it(world: World) -> None:
    """Guard: with the condition of training jobs it went back to a start that an evaluation does not have."""
    job = trained(world)
    made = started(world, job)
    worker = running(world)
    head = world.head(made)
    (world.store.folder / head.key).write_bytes(b"damaged")
    said = worker._said()
    worker.send(Finish(**said, step=0, failure=Failure(message="x", permanent=False, bad_checkpoint=head.sha256)))
    assert world.job(made).state is JobState.FAILED
    assert world.job(made).head == head.sha256


def test_an_evaluation_does_not_change_the_times_of_training_jobs(world: World) -> None:
    """Guard: its units take other times than steps."""
    job = trained(world)
    made = started(world, job)
    worker = running(world)
    assert offered(worker, 3).committed
    with world.ctx.uow() as tx:
        shown = tx.jobs.get(made)
        assert shown is not None
        shown.timed(77.0, gpu=False)
        tx.jobs.save(shown)
        spec = json.loads(json.dumps(shown.spec))
        typical = tx.jobs.typical_step_time(spec["base_model"], spec["global_batch_size"] * spec["sequence_len"])
        sizes = tx.jobs.typical_checkpoint_bytes(spec["base_model"], spec["lora_r"])
    assert typical.host_s != 77.0
    assert sizes == world.head(job).size
