"""The evaluation that follows in the session that has trained: when it does, and that it is neither lost nor twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.domain.errors import ConflictError, StaleFenceError
from orchestrator.domain.jobs import Lease, StepTime
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.ports.providers import SessionOutput
from orchestrator.services import accounts, assignments, continuing, evaluation_times, jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import Start
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import Worker, World
from tests.services.test_evaluate_key import ASKED, followed
from tests.services.test_evaluations import answers, finish, offered, running
from worker.shared.evaluation_spec import EvaluationSpec, JudgeSpec
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Hardware
from worker.shared.messages import (
    ExportedAdapter,
    Finish,
    GrantKind,
    Phase,
    Report,
    StartRequest,
    StoredAnswers,
    Ticket,
)

STEP_S = 0.3


def reported(worker: Worker, step_s: float | None = STEP_S) -> None:
    """A report with the time of a step, after a start of 20 seconds."""
    ledger = {Phase.LOAD: 15.0, Phase.RESTORE: 5.0, Phase.TRAIN: 99.0}
    worker.send(Report(**worker._said(), step=worker.step, phase=Phase.TRAIN, seconds_per_step=step_s, ledger=ledger))


def last_message(worker: Worker, *, can_continue: bool) -> Finish:
    """The last message of a training job, with its adapter in the store."""
    assert worker.assignment is not None
    grant = next(grant for grant in worker.assignment.uploads if grant.kind is GrantKind.ADAPTER)
    target = Path(grant.path or "")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"adapter")
    digest = hashlib.sha256(b"adapter").hexdigest()
    adapter = ExportedAdapter(key=grant.key, sha256=digest, size=7, adapter_sha256=digest)
    return Finish(**worker._said(), step=worker.step, adapter=adapter, can_continue=can_continue)


def trained(world: World, who: str = "alice", step_s: float | None = STEP_S, **extra: Any) -> tuple[str, Worker]:
    """A job before its last message."""
    job = world.submit(who, 4, **({"val_set_size": 0.9, "evaluate": ASKED} | extra))
    worker = running(world)
    worker.step = 4
    reported(worker, step_s)
    assert worker.save().committed
    return job, worker


def continued(world: World) -> tuple[str, Worker, Ticket]:
    """A job that is done, its worker, and the ticket that it got."""
    job, worker = trained(world)
    ticket = worker.send(last_message(worker, can_continue=True))
    assert isinstance(ticket, Ticket)
    return job, worker, ticket


def lease_of(world: World, lease_id: str) -> Lease:
    with world.ctx.uow() as tx:
        found = tx.leases.get(lease_id)
    assert found is not None
    return found


def test_an_evaluation_with_a_judge_needs_time_to_load_it(world: World) -> None:
    """Guard: with one start for both models, a session was given an evaluation that it had to hand on."""
    job, worker = trained(world)
    spec, lease = JobSpec.model_validate(world.job(job).spec), lease_of(world, worker.lease)
    needed: list[float] = []
    for judge in (None, JudgeSpec(model="org/judge")):
        own = evaluation_times.spec_of(spec, EvaluationSpec(judge=judge))
        work_s = evaluation_times.seconds(own, StepTime(), STEP_S, gpu=lease.on_gpu)
        with world.ctx.uow() as tx:
            needed_s = continuing._needed_s(tx, lease, own)
        assert needed_s is not None
        assert work_s is not None
        needed.append(needed_s - work_s)
    assert needed[1] - needed[0] == pytest.approx(20.0)


def test_the_session_gets_the_evaluation_with_a_lease_of_its_own(world: World) -> None:
    """Guard: without `continuing.grant` the worker left, and the next machine loaded everything again."""
    job, worker = trained(world)
    world.clock.tick(100)
    message = last_message(worker, can_continue=True)
    ticket = worker.send(message)
    first, (made,) = lease_of(world, worker.lease), followed(world, job)
    lease = lease_of(world, ticket.lease)
    assert (first.state, first.end_reason) == (LeaseState.RELEASED, EndReason.COMPLETED)
    assert (world.job(job).state, world.job(made).state) == (JobState.SUCCEEDED, JobState.LEASED)
    assert (lease.id, lease.session, lease.job_id, lease.fence) == (f"{first.id}.next", first.id, made, 1)
    assert (lease.account_id, lease.external_id, lease.offline) == (first.account_id, first.external_id, False)
    assert lease.budget_s == ticket.budget_s == pytest.approx(first.budget_s - 100, abs=1)
    assert ticket.token == world.ctx.tokens.for_lease(lease.id)
    assert lease.token_hash == world.ctx.tokens.hash(ticket.token)
    dispatch(world.ctx)
    assert len(world.machines.launched) == 1, "nothing else is started for it"
    assert worker.send(message) == ticket, "the reply may have been lost"
    follower = Worker(world, ticket.lease)
    assert follower.start().job == made
    assert worker.send(message) is None, "another process has it now"
    with pytest.raises(ConflictError, match="was started by another process"):
        Worker(world, "lease-x").send(start_of(ticket.lease))
    assert offered(follower, world.job(made).total_steps).committed
    finish(follower, answers(35))
    assert world.job(made).state is JobState.SUCCEEDED
    assert len(followed(world, job)) == 1


def start_of(lease: str) -> Any:
    return Start(lease=lease, request=StartRequest(protocol=1, nonce="other", hardware=Hardware()))


def test_an_old_worker_leaves_and_the_evaluation_waits(world: World) -> None:
    """Guard: without the capability in its message a worker of an earlier version would not know what to do with it."""
    job, worker = trained(world)
    message = last_message(worker, can_continue=False)
    assert worker.send(message) is None
    assert worker.send(message.model_copy(update={"can_continue": True})) is None
    assert world.job(followed(world, job)[0]).state is JobState.QUEUED


def _drained(world: World, worker: Worker) -> None:
    assert worker.assignment is not None
    jobs.hand_over(world.ctx, world.actors["alice"], worker.assignment.job)


def _no_consent(world: World, _: Worker) -> None:
    world.set_consent("alice", agreed=False)


def _paused(world: World, _: Worker) -> None:
    accounts.change_account(world.ctx, world.actors["alice"], "alice-sim", paused=True, config=None)


def _late(world: World, worker: Worker) -> None:
    lease = lease_of(world, worker.lease)
    world.clock.tick(lease.budget_s - 100)


@pytest.mark.parametrize("happens", [_drained, _no_consent, _paused, _late])
def test_it_waits_for_a_machine_where_the_session_may_not_go_on(
    world: World, happens: Callable[[World, Worker], None]
) -> None:
    """Guards: each condition of `grant` was removed once, and the evaluation was leased to this session."""
    job, worker = trained(world)
    message = last_message(worker, can_continue=True)
    happens(world, worker)
    assert worker.send(message) is None
    assert (world.job(job).state, world.job(followed(world, job)[0]).state) == (JobState.SUCCEEDED, JobState.QUEUED)


def test_it_waits_where_no_step_was_timed_and_where_it_would_take_too_long(world: World) -> None:
    for step_s in (None, 2000.0):
        job, worker = trained(world, step_s=step_s)
        assert worker.send(last_message(worker, can_continue=True)) is None
        (made,) = followed(world, job)
        assert world.job(made).state is JobState.QUEUED
        world.machines.end(worker.lease)
        jobs.cancel(world.ctx, world.actors["alice"], made)
        reconcile(world.ctx)


def test_a_machine_that_dies_before_it_begins_loses_nothing(world: World) -> None:
    job, worker, ticket = continued(world)
    (made,) = followed(world, job)
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert (lease_of(world, ticket.lease).state, world.job(made).state) == (LeaseState.EXPIRED, JobState.QUEUED)
    with pytest.raises(StaleFenceError):
        Worker(world, ticket.lease).start()
    follower = running(world)
    assert follower.assignment is not None
    assert (follower.assignment.job, follower.assignment.fence) == (made, 2)
    assert offered(follower, world.job(made).total_steps).committed
    finish(follower, answers(35))
    assert (world.job(made).state, len(followed(world, job))) == (JobState.SUCCEEDED, 1)


def test_a_machine_that_dies_in_it_is_replaced(world: World) -> None:
    job, worker, ticket = continued(world)
    (made,) = followed(world, job)
    follower = Worker(world, ticket.lease)
    follower.start()
    assert offered(follower, 3).committed
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert world.job(made).state is JobState.QUEUED
    again = running(world)
    assert again.assignment is not None
    assert (again.assignment.job, again.assignment.resume_step, again.assignment.origin) == (made, 3, None)


def test_the_session_is_cleared_away_after_its_last_lease(world: World) -> None:
    """Guard: with the first lease alone in view its machine was stopped in the middle of the evaluation."""
    job, worker, ticket = continued(world)
    (made,) = followed(world, job)
    follower = Worker(world, ticket.lease)
    follower.start()
    for _ in range(3):
        world.clock.tick(world.ctx.limits.stop_grace_s + 1)
        follower.report()
        reconcile(world.ctx)
    assert (world.machines.stopped, world.machines.forgotten) == ([], [])
    assert lease_of(world, worker.lease).collected_at is None
    assert world.job(made).state is JobState.RUNNING
    assert offered(follower, world.job(made).total_steps).committed
    finish(follower, answers(35))
    world.machines.end(worker.lease)
    for _ in range(2):
        reconcile(world.ctx)
    assert {lease_of(world, each).collected_at is None for each in (worker.lease, ticket.lease)} == {False}
    assert set(world.machines.forgotten) == {worker.lease}


def test_a_message_that_nobody_waits_for_leases_nothing(world: World) -> None:
    """The server finds it on the ended machine. Guard: with `can_continue` believed there, it got the lease."""
    job, worker = trained(world)
    message = last_message(worker, can_continue=True)
    world.machines.outputs[worker.lease] = SessionOutput(messages=(message.as_line(),))
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert world.job(job).state is JobState.SUCCEEDED
    (made,) = followed(world, job)
    assert (world.job(made).state, world.job(made).fence) == (JobState.QUEUED, 0)


def test_messages_of_both_leases_in_one_outbox_are_told_apart(world: World) -> None:
    job, worker, ticket = continued(world)
    (made,) = followed(world, job)
    follower = Worker(world, ticket.lease)
    follower.start()
    follower.seq = worker.seq
    offered(follower, world.job(made).total_steps)
    assert follower.assignment is not None
    (grant,) = assignments.grants(world.ctx, ticket.lease, 1, GrantKind.ANSWERS, 1)
    Path(grant.path or "").write_bytes(answers(35))
    digest = hashlib.sha256(answers(35)).hexdigest()
    file = StoredAnswers(key=grant.key, sha256=digest, size=len(answers(35)))
    last = Finish(**follower._said(), step=follower.step, answers=file)
    first = last_message(worker, can_continue=True)
    lines = (first.as_line(), '{"withdrawn": 2}', last.as_line())
    world.machines.outputs[worker.lease] = SessionOutput(messages=lines)
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert world.job(made).state is JobState.SUCCEEDED


def test_a_cancelled_evaluation_is_not_begun(world: World) -> None:
    job, worker, ticket = continued(world)
    (made,) = followed(world, job)
    jobs.cancel(world.ctx, world.actors["alice"], made)
    assert world.job(made).state is JobState.CANCELLED
    with pytest.raises(StaleFenceError):
        Worker(world, ticket.lease).start()
    assert lease_of(world, worker.lease).state is LeaseState.RELEASED


def test_a_job_whose_session_goes_on_is_deleted_later(world: World) -> None:
    """Guard: for as long as its evaluation ran, the owner was told to try again in a minute."""
    job, _, _ = continued(world)
    (made,) = followed(world, job)
    with pytest.raises(ConflictError, match=f"continues with job {made}"):
        jobs.delete(world.ctx, world.actors["alice"], job)
    jobs.cancel(world.ctx, world.actors["alice"], made)
    with pytest.raises(ConflictError, match="still being cleaned up"):
        jobs.delete(world.ctx, world.actors["alice"], job)


def test_deleting_the_evaluation_leaves_the_log_of_the_training(world: World) -> None:
    """Guard: both have one log, and deleting the evaluation took that of the training along."""
    job, worker, ticket = continued(world)
    (made,) = followed(world, job)
    follower = Worker(world, ticket.lease)
    follower.start()
    assert offered(follower, world.job(made).total_steps).committed
    finish(follower, answers(35))
    world.machines.logs[worker.lease] = b"step 1"
    world.machines.end(worker.lease)
    for _ in range(2):
        reconcile(world.ctx)
    jobs.delete(world.ctx, world.actors["alice"], made)
    assert world.machines.logs == {worker.lease: b"step 1"}
    jobs.delete(world.ctx, world.actors["alice"], job)
    assert world.machines.logs == {}


def test_a_machine_that_cannot_call_leaves(engine: Engine, tmp_path: Path) -> None:
    world = OfflineWorld(engine, tmp_path)
    job = world.submit("alice", 4, val_set_size=0.9, evaluate=ASKED)
    worker: Any = running(world)
    worker.step = 4
    worker.save()
    worker.finish()
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert world.job(job).state is JobState.SUCCEEDED
    assert world.job(followed(world, job)[0]).state is JobState.QUEUED
