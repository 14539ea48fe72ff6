"""The promises, under every order of events that Hypothesis can think of, on a real database of both kinds.

`test_guards_matter` takes the guards out one by one and sees this machine fail.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine

from orchestrator.domain.errors import ConflictError, StaleFenceError, TrainhopError
from orchestrator.services import clones, jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import receive
from tests.conftest import DATABASES
from tests.helpers import promises as helpers
from tests.helpers.world import Worker, World

WHO = st.sampled_from(["alice", "bob"])
ACTS = ["start", "report", "advance", "advance", "release", "finish", "fail"]
PICK = st.integers(min_value=0, max_value=31)


class Promises(RuleBasedStateMachine):
    """Everything that can happen, in any order; after each event every promise is looked at."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.jobs: list[str] = []
        self.promises = helpers.Promises(world)
        self.agreed = {"alice"}
        self.world.set_consent("bob", agreed=False)

    def pick(self, number: int) -> str:
        return self.jobs[number % len(self.jobs)]

    def alive(self) -> list[Worker]:
        return [w for w in self.world.workers if w.is_alive]

    # what people do

    @precondition(lambda self: len(self.jobs) < 5)
    @rule(who=WHO, steps=st.integers(1, 4), priority=st.integers(-1, 0))
    def submit(self, who: str, steps: int, priority: int) -> None:
        self.jobs.append(self.world.submit(who, steps, priority=priority))

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, what=st.sampled_from([jobs.pause, jobs.resume, jobs.cancel, jobs.retry]))
    def ask(self, number: int, what: Any) -> None:
        job = self.world.job(self.pick(number))
        with contextlib.suppress(ConflictError):
            what(self.world.ctx, self.world.actors[job.member_id], job.id)

    @rule()
    def bob_agrees(self) -> None:
        self.agreed.add("bob")
        self.world.set_consent("bob", agreed=True)

    # what the server does

    @rule(starting=st.booleans())
    def tick(self, starting: bool) -> None:
        dispatch(self.world.ctx)
        for worker in self.world.new_workers():
            if starting:
                with contextlib.suppress(TrainhopError):
                    worker.start()

    @rule()
    def look(self) -> None:
        reconcile(self.world.ctx)

    @rule(seconds=st.sampled_from([1.0, 20.0, 100.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.tick(seconds)

    @rule()
    def restart_server(self) -> None:
        self.world.start_server()

    # what machines do

    @rule(up=st.booleans())
    def network(self, up: bool) -> None:
        self.world.machines.set_reachable(reachable=up)

    @rule(rejecting=st.booleans(), lose=st.booleans())
    def mood(self, rejecting: bool, lose: bool) -> None:
        self.world.machines.rejecting, self.world.machines.lose_reply = rejecting, lose

    @precondition(lambda self: self.alive())
    @rule(number=PICK)
    def machine_dies(self, number: int) -> None:
        workers = self.alive()
        self.world.machines.end(workers[number % len(workers)].lease)

    # what workers do, zombies among them: a dead machine's worker may still speak

    @precondition(lambda self: self.world.workers)
    @rule(number=PICK, act=st.sampled_from(ACTS))
    def worker_acts(self, number: int, act: str) -> None:
        worker = self.world.workers[number % len(self.world.workers)]
        was_live, before = self.is_live(worker), self.facts(worker)
        try:
            self._act(worker, act)
        except StaleFenceError:
            assert not was_live, "a live worker was called stale"
        except TrainhopError:
            pass
        else:
            # A goodbye said again is answered alike; anything else from the past is refused, and nothing ever changes.
            again = act in ("release", "finish", "fail") or worker.assignment is None
            assert was_live or again, "a stale worker was heard"
        assert was_live or self.facts(worker) == before, "a stale worker changed something"

    def _act(self, worker: Worker, act: str) -> None:
        if act == "start":
            worker.start()
            return
        if worker.assignment is None:
            return
        if act == "advance":
            worker.step = min(worker.step + 1, worker.assignment.spec.total_steps)
            worker.save()
        else:
            getattr(worker, act)()

    def is_live(self, worker: Worker) -> bool:
        with self.world.ctx.uow() as tx:
            lease = tx.leases.get(worker.lease)
        return lease is not None and lease.state.is_live

    def facts(self, worker: Worker) -> Any:
        """What a stale worker must not be able to change."""
        if worker.assignment is None:
            return None
        job = self.world.job(worker.assignment.job)
        return job.state, job.fence, job.head, job.end_reason, job.adapter_key

    @precondition(lambda self: self.working())
    @rule(number=PICK, torn=st.booleans())
    def worker_offers_rubbish(self, number: int, torn: bool) -> None:
        workers = self.working()
        (self._offer_a_torn_file if torn else self._offer_a_fork)(workers[number % len(workers)])

    def working(self) -> list[Worker]:
        """Workers that have started and still count, with steps left to do."""
        return [
            w
            for w in self.world.workers
            if w.assignment is not None and self.is_live(w) and w.step < w.assignment.spec.total_steps
        ]

    def _offer_a_fork(self, worker: Worker) -> None:
        """A checkpoint that does not continue the head must be refused."""
        job = self.world.job(worker.assignment.job) if worker.assignment else None
        wrong = "0" * 64 if job and job.head != "0" * 64 else None
        reply = receive(self.world.ctx, worker.write(worker.manifest(parent=wrong)))
        assert not reply.committed

    def _offer_a_torn_file(self, worker: Worker) -> None:
        """A file that lost its tail between hashing and reading back must be refused."""
        worker.step += 1
        offer = worker.write(worker.manifest())
        path = self.world.store.path(offer.key)
        path.write_bytes(path.read_bytes()[:-3])
        assert not receive(self.world.ctx, offer).committed
        worker.step -= 1

    @precondition(lambda self: self.world.workers)
    @rule(number=PICK)
    def message_arrives_twice(self, number: int) -> None:
        with contextlib.suppress(TrainhopError):
            self.world.workers[number % len(self.world.workers)].last()

    # the promises

    @invariant()
    def the_promises_hold(self) -> None:
        self.promises.check(self.jobs, self.agreed)

    def teardown(self) -> None:
        """Promise 10: once faults stop, every job that nobody paused comes to an end."""
        machines = self.world.machines
        machines.set_reachable(reachable=True)
        machines.rejecting = machines.lose_reply = False
        self.world.start_server()
        self.bob_agrees()
        for ident in self.jobs:
            job = self.world.job(ident)
            with contextlib.suppress(ConflictError):
                jobs.resume(self.world.ctx, self.world.actors[job.member_id], ident)
        for _ in range(60):
            if all(self.world.job(i).state.is_final for i in self.jobs):
                return
            self.world.clock.tick(301)
            reconcile(self.world.ctx)
            dispatch(self.world.ctx)
            self.world.new_workers()
            for worker in self.alive():
                with contextlib.suppress(TrainhopError):
                    self._work_to_the_end(worker)
        pytest.fail(f"stuck: {[(i, self.world.job(i).state) for i in self.jobs]}")

    @staticmethod
    def _work_to_the_end(worker: Worker) -> None:
        worker.start()
        assert worker.assignment is not None
        if worker.report().action != "continue":
            worker.release("drained")
            return
        while worker.step < worker.assignment.spec.total_steps:
            worker.step += 1
            worker.save()
        worker.finish()


class PromisesOfClones(Promises):
    """And jobs that begin with another one's newest checkpoint, and jobs that are deleted. Apart, so that the negative
    controls are found as quickly."""

    @precondition(lambda self: self.jobs and len(self.jobs) < 6)
    @rule(number=PICK)
    def clone(self, number: int) -> None:
        job = self.world.job(self.pick(number))
        if job.head is not None:
            actor = self.world.actors[job.member_id]
            self.jobs.append(clones.clone(self.world.ctx, actor, job.id, {}, checkpoint=job.head).id)

    @precondition(lambda self: self.jobs)
    @rule(number=PICK)
    def delete(self, number: int) -> None:
        job = self.world.job(self.pick(number))
        with contextlib.suppress(ConflictError):
            jobs.delete(self.world.ctx, self.world.actors[job.member_id], job.id)
            self.jobs.remove(job.id)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_kind", DATABASES)
def test_promises_hold_in_any_order_of_events(database_kind: str, make_database: Any, tmp_path: Path) -> None:
    """See the module's docstring for the guards that were removed to see this fail."""
    runs = iter(range(10**6))

    def machine() -> PromisesOfClones:
        engine: Engine = make_database()
        folder = tmp_path / f"run-{next(runs)}"
        folder.mkdir()
        return PromisesOfClones(World(engine, folder))

    run_state_machine_as_test(
        machine,  # pyright: ignore[reportArgumentType]  any callable that makes one will do
        settings=settings(
            max_examples=60 if database_kind == "sqlite" else 15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )
