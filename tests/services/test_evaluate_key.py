"""The key `evaluate` of a job file: the evaluation that follows when the job is done; on both databases."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.domain.accounts import Account, Actor, Role
from orchestrator.domain.errors import ConflictError, InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.storage import Dataset, Upload
from orchestrator.ports.repository import Transaction
from orchestrator.services import clones, datasets, evaluations, plans
from orchestrator.services.capacity import list_capacity
from orchestrator.services.dispatch import dispatch
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import Worker, World
from tests.services.test_evaluations import answers, finish, offered, running, stored_evaluation, trained
from worker.shared.evaluation_spec import MEASURES, EvaluationSpec
from worker.shared.job_spec import JobSpec

ASKED: dict[str, Any] = {"max_prompts": 35, "max_new_tokens": 64}
PROMPTS = hashlib.sha256(b"prompts").hexdigest()


def followed(world: World, job: str) -> list[str]:
    """The jobs that evaluate a job, newest first."""
    with world.ctx.uow() as tx:
        return [found.job_id for found in tx.evaluations.of_job(job)]


def with_prompts(world: World, kind: str = "messages", who: str = "alice") -> None:
    with world.ctx.uow() as tx:
        made = Dataset(
            sha256=PROMPTS, size=7, file_format="jsonl", row_format=kind, rows=50, name="prompts",
            member_id=who, created_at=1.0, key=f"datasets/{PROMPTS}",
        )  # fmt: skip
        tx.datasets.add(made)
        tx.datasets.add_upload(Upload(id="u", sha256=PROMPTS, member_id=who, name="p", created_at=1.0))
    (world.folder / "prompts").write_bytes(b"prompts")
    world.store.put(f"datasets/{PROMPTS}", world.folder / "prompts")


def kinds(world: World, job: str) -> list[str]:
    with world.ctx.uow() as tx:
        return [event.kind for event in tx.events.after(0, job_id=job, limit=100)]


def test_the_evaluation_follows_once_with_the_owner_and_the_placement(world: World) -> None:
    """Guard: without `evaluate_finished` in the transaction of the finish there was none."""
    placement = {"accounts": ["alice's"], "max_session_s": 5000}
    job = trained(world, evaluate=ASKED, placement=placement, deadline=9e9, priority=-3, sample_prompts=["?"])
    world.workers[-1].last()  # a repeated message adds none
    (made,) = followed(world, job)
    shown, spec = world.job(made), JobSpec.model_validate(world.job(made).spec)
    assert (shown.state, shown.member_id, shown.cloned_from, shown.fence) == (JobState.QUEUED, "alice", job, 0)
    assert (spec.placement.accounts, spec.placement.max_session_s) == (("alice's",), 5000)
    assert (shown.deadline, shown.priority, spec.sample_prompts, spec.evaluate) == (None, -3, (), None)
    assert spec.evaluation == EvaluationSpec(**ASKED, measures=MEASURES)
    found = stored_evaluation(world, made)
    assert (found.owner, found.checkpoint_sha256) == ("alice", world.job(job).head)
    assert found.adapter_sha256 == world.job(job).adapter_sha256 is not None
    assert kinds(world, job)[-1] == "job.evaluated"
    worker = running(world)
    assert worker.assignment is not None
    assert worker.assignment.job == made
    assert offered(worker, shown.total_steps).committed
    finish(worker, answers(35))
    assert world.job(made).state is JobState.SUCCEEDED
    assert (followed(world, job), followed(world, made)) == ([made], [])


def test_a_worker_never_sees_the_key(world: World) -> None:
    """Guard: workers of earlier versions refuse a job file with a key that they do not know."""
    job = world.submit("alice", 4, val_set_size=0.9, evaluate=ASKED)
    worker = running(world)
    assert worker.assignment is not None
    assert "evaluate" not in worker.assignment.model_dump(mode="json")["spec"]
    assert world.job(job).spec["evaluate"]["max_prompts"] == 35


def test_a_server_that_dies_in_the_finish_neither_loses_nor_doubles_it(world: World) -> None:
    """Guard: queued in a transaction of its own before the finish it was there twice, after it never."""
    job = world.submit("alice", 4, val_set_size=0.9, evaluate=ASKED)
    worker = running(world)
    worker.step = 4
    assert worker.save().committed

    @contextlib.contextmanager
    def dying() -> Iterator[Transaction]:
        with world.watch() as tx:
            yield tx
            if tx.jobs.get_many([job])[job].state is JobState.SUCCEEDED:
                raise KeyboardInterrupt  # before the commit

    world.ctx = replace(world.ctx, uow=dying)
    with pytest.raises(KeyboardInterrupt):
        worker.finish()
    assert (world.job(job).state, followed(world, job)) == (JobState.RUNNING, [])
    world.start_server()
    worker.last()
    assert (world.job(job).state, len(followed(world, job))) == (JobState.SUCCEEDED, 1)
    for _ in range(2):
        worker.last()
    assert len(followed(world, job)) == 1


def test_it_follows_no_job_that_failed_or_asks_for_none(world: World) -> None:
    assert followed(world, trained(world)) == []
    job = world.submit("alice", 4, val_set_size=0.9, evaluate=ASKED)
    running(world).fail(permanent=True)
    assert (world.job(job).state, followed(world, job)) == (JobState.FAILED, [])


def test_what_cannot_be_evaluated_is_refused_at_the_submit(world: World) -> None:
    """Guards: without `evaluation_prompts.pinned` in `resolve` each of these was queued."""
    for changes, words, pointer in (
        ({"evaluate": {}}, "no validation rows to take prompts from. Give a file of prompts or set val_set_size", ""),
        ({"evaluate": {"prompts": {"path": "sha256:" + "1" * 64}}}, "There is no dataset 111111111111", "/path"),
    ):
        with pytest.raises(InvalidError, match=words) as refused:
            world.submit("alice", 4, **changes)
        assert [place for place, _ in refused.value.problems] == [f"/evaluate/prompts{pointer}"]
    with_prompts(world, "text")
    with pytest.raises(InvalidError, match="Rows of plain text have no prompts") as refused:
        world.submit("alice", 4, evaluate={"prompts": {"path": f"sha256:{PROMPTS}"}})
    assert refused.value.problems[0][0] == "/evaluate/prompts/type"
    with pytest.raises(InvalidError, match="There is no dataset"):
        world.submit("bob", 4, evaluate={"prompts": {"path": f"sha256:{PROMPTS}"}})


def test_few_prompts_are_noted_at_the_submit(world: World) -> None:
    job = world.submit("alice", 4, val_set_size=0.5, evaluate={"max_prompts": 30})
    with world.ctx.uow() as tx:
        assert "There are only 20 prompts" in tx.events.after(0, job_id=job, limit=1)[0].reason


def test_its_prompts_are_kept_until_it_has_asked_them(world: World) -> None:
    """Guard: an evaluation found nothing to ask, because a file that no session had read yet was not in use."""
    with_prompts(world)
    job = world.submit("alice", 4, evaluate={"prompts": {"path": f"sha256:{PROMPTS}"}})
    assert world.job(job).spec["evaluate"]["prompts"]["rows"] == 50
    with pytest.raises(ConflictError, match="uses this file"):
        datasets.delete_dataset(world.ctx, world.actors["alice"], PROMPTS)
    worker = running(world)
    assert worker.assignment is not None
    assert [grant.sha256 for grant in worker.assignment.datasets] == [world.dataset]
    worker.step = 4
    assert worker.save().committed
    worker.finish()
    with pytest.raises(ConflictError, match="uses this file"):
        datasets.delete_dataset(world.ctx, world.actors["alice"], PROMPTS)
    worker = running(world)
    assert worker.assignment is not None
    assert [grant.sha256 for grant in worker.assignment.datasets] == [PROMPTS]


def test_a_clone_keeps_it_changes_it_or_leaves_it_out(world: World) -> None:
    with_prompts(world)
    job = world.submit("alice", 4, evaluate={"max_prompts": 40, "prompts": {"path": f"sha256:{PROMPTS}"}})

    def cloned(**changes: Any) -> Any:
        made = clones.clone(world.ctx, world.actors["alice"], job, changes)
        return made.spec.get("evaluate")

    assert cloned() == world.job(job).spec["evaluate"]
    assert cloned(evaluate={"max_prompts": 31}) == world.job(job).spec["evaluate"] | {"max_prompts": 31}
    assert cloned(evaluate=None) is None
    admin = Actor(member_id="bob", name="bob", role=Role.ADMIN)
    assert clones.clone(world.ctx, admin, job, {}).spec["evaluate"]["prompts"]["sha256"] == PROMPTS
    with world.ctx.uow() as tx:
        assert tx.datasets.get_of(PROMPTS, "bob") is not None, "the clone's owner keeps the file"


def test_an_evaluation_that_cannot_follow_does_not_undo_the_training(world: World) -> None:
    """The owner cannot be removed while the job runs, but the database alone does not know that."""
    job = world.submit("alice", 4, val_set_size=0.9, evaluate=ASKED)
    worker = running(world)
    worker.step = 4
    assert worker.save().committed
    with world.ctx.uow() as tx:
        member = tx.members.get("alice")
        assert member is not None
        member.removed_at = world.clock.now()
        tx.members.remove(member)
    worker.finish()
    assert (world.job(job).state, followed(world, job)) == (JobState.SUCCEEDED, [])
    with world.ctx.uow() as tx:
        (said,) = tx.events.of_kind(job, "job.not_evaluated")
    assert said.reason == "Its owner is no longer a member of this server."


def test_an_evaluation_that_an_admin_starts_is_that_of_the_jobs_owner(world: World) -> None:
    """Guard: it was the admin's, and the page of the job had links to it that its owner could not open."""
    job = trained(world)
    admin = Actor(member_id="bob", name="bob", role=Role.ADMIN)
    made = evaluations.evaluate(world.ctx, admin, job, EvaluationSpec(), key="k").job
    assert (made.member_id, stored_evaluation(world, made.id).owner) == ("alice", "alice")
    assert evaluations.evaluate(world.ctx, admin, job, EvaluationSpec(), key="k").job.id == made.id
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    assert isinstance(worker, Worker)
    assert worker.start().job == made.id
    with world.ctx.uow() as tx:
        assert [lease.account_id for lease in tx.leases.of_job(made.id)] == ["alice-sim"]


def planned(world: World, who: str = "alice", **changes: Any) -> tuple[plans.Plan, plans.PlannedPlace]:
    asked = {"val_set_size": 0.9, "evaluate": ASKED} | changes
    rows = {"datasets": [{"path": f"sha256:{world.dataset}", "file_format": "jsonl"}]}
    spec = JobSpec.model_validate({"base_model": "tiny", "max_steps": 1000} | rows | asked)
    found = plans.plan(world.ctx, world.actors[who], spec)
    (place,) = found.places
    return found, place


def timed(world: World, job: str, seconds: float) -> None:
    with world.ctx.uow() as tx:
        found = tx.jobs.get(job)
        assert found is not None
        found.timed(seconds, gpu=False)
        tx.jobs.save(found)


def test_the_plan_says_how_long_it_takes_and_where(world: World) -> None:
    """Guard: with the whole budget of a session in place of its rest, an evaluation always fitted."""
    found, place = planned(world)
    assert found.evaluation == plans.PlannedEvaluation(prompts=35, max_new_tokens=64)
    assert (place.evaluation_s, place.evaluation_in_last_session) == (None, None)  # no step was timed yet
    timed(world, trained(world), 3.0)
    _, place = planned(world)
    token_s = 3.0 / (3 * 8 * 1024)  # a third of a training step of 8 x 1024 tokens
    batch_s = 7 * 1024 * token_s + 64 * (0.1 + 7 * token_s)
    assert place.evaluation_s is not None
    own_s, passages_s = 35 * (0.1 + 1024 * token_s), 100 * (0.1 + 150 * token_s)
    fixed_s = 4 * (15 * 150 * token_s + 128 * (0.1 + 15 * token_s))
    assert place.evaluation_s == pytest.approx(2 * (5 * batch_s + own_s + passages_s + fixed_s))
    assert place.sessions == 1
    assert place.evaluation_in_last_session
    (room,) = (p for p in list_capacity(world.ctx, accounts(world)) if p.name == "alice's")
    for left_s, fits in ((0.9 * place.evaluation_s, False), (1.1 * place.evaluation_s, True)):
        session_s = 3000 + left_s + 2 * room.start_up_s + 2 * room.save_s
        _, place = planned(world, placement={"max_session_s": session_s})
        assert (place.sessions, place.evaluation_in_last_session) == (1, fits)
    _, place = planned(world, evaluate=None)
    assert (place.evaluation_s, place.evaluation_in_last_session) == (None, None)


def accounts(world: World) -> list[Account]:
    with world.ctx.uow() as tx:
        return tx.accounts.all()


def test_a_timed_evaluation_is_the_estimate_of_the_next(world: World) -> None:
    """Guards: one of other batches takes another time, and so does a step of training."""
    job = trained(world, evaluate=ASKED)
    timed(world, job, 3.0)
    (made,) = followed(world, job)
    timed(world, made, 7.0)
    _, place = planned(world)
    assert place.evaluation_s == 7.0 * world.job(made).total_steps
    _, place = planned(world, evaluate=ASKED | {"max_new_tokens": 65})
    assert place.evaluation_s != 7.0 * world.job(made).total_steps


def test_a_machine_that_cannot_call_gets_a_session_of_its_own(engine: Engine, tmp_path: Path) -> None:
    world = OfflineWorld(engine, tmp_path)
    job = world.submit("alice", 4)
    timed(world, job, 3.0)
    _, place = planned(world)
    assert place.evaluation_s
    assert place.evaluation_in_last_session is False
