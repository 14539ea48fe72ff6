"""The promises once more, over the other uplink: machines print, connections break anywhere, lines get torn, files are
lost.

Seen failing with the fence taken out (a zombie's lines were heard). The other guards of this uplink (reading the output
of a dead session, the order of lines, files that are still wanted) are each held by a scenario of
`tests/faults/test_offline_sessions.py`, which fails at once where chance needs many runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from orchestrator.domain.lifecycle import JobState
from orchestrator.services.reconcile import reconcile
from tests.conftest import DATABASES
from tests.helpers.offline_world import OfflineWorker, OfflineWorld
from tests.helpers.world import Worker
from tests.properties.test_promises import ACTS, PICK, Promises


class OfflinePromises(Promises):
    """`Promises` with machines that are only listened to."""

    world: OfflineWorld

    def __init__(self, world: OfflineWorld) -> None:
        super().__init__(world)
        self.spoilt_jobs: set[str] = set()
        """Those of which this machine offered rubbish on purpose."""

    def worker(self, number: int) -> OfflineWorker:
        worker = self.world.workers[number % len(self.world.workers)]
        assert isinstance(worker, OfflineWorker)
        return worker

    @precondition(lambda self: self.world.workers)
    @rule(number=PICK, act=st.sampled_from(ACTS))
    def worker_acts(self, number: int, act: str) -> None:
        """Nobody hears it yet, so nothing changes yet."""
        worker = self.worker(number)
        before = self.facts(worker)
        self._act(worker, act)
        assert self.facts(worker) == before or worker.assignment is None or before is None

    @precondition(lambda self: self.world.workers)
    @rule(number=PICK, upto=st.one_of(st.none(), st.integers(0, 12)))
    def somebody_listens(self, number: int, upto: int | None) -> None:
        worker = self.worker(number)
        was_live, before = self.is_live(worker), self.facts(worker)
        self.world.listen(worker.lease, upto)
        assert was_live or self.facts(worker) == before, "a stale worker changed something"

    @precondition(lambda self: self.world.workers)
    @rule(number=PICK, line=st.integers(0, 12), rubbish=st.sampled_from(["torn", "forged", "long"]))
    def output_is_spoilt(self, number: int, line: int, rubbish: str) -> None:
        printed = self.worker(number).session.printed
        if rubbish == "torn" and printed:
            place = line % len(printed)
            printed[place] = printed[place][: -1 - line]
        elif rubbish == "forged":
            printed.append(f'@trainhop {"0" * 64} {{"kind":"release","lease":"x","fence":1,"seq":999999,"step":1}}')
        else:
            printed.append("x" * 1_000_000)

    @precondition(lambda self: self.world.workers)
    @rule(number=PICK)
    def uploads_stop_working(self, number: int) -> None:
        self.worker(number).holding = True

    @precondition(lambda self: self.alive())
    @rule(number=PICK)
    def machine_dies_with_its_files(self, number: int) -> None:
        workers = self.alive()
        worker = workers[number % len(workers)]
        self.world.machines.end(worker.lease)
        self.world.machines.session(worker.lease).lost = True

    @rule()
    def look(self) -> None:
        """Whatever ends a session that has begun, all that it had offered by then is adopted first."""
        live = [w for w in self.world.workers if self.is_live(w)]
        reconcile(self.world.ctx)
        for worker in live:
            if not self.is_live(worker) and worker.assignment is not None:
                self._expect_adoption(worker)

    def _expect_adoption(self, worker: Worker) -> None:
        assert isinstance(worker, OfflineWorker)
        assert worker.assignment is not None
        job = self.world.job(worker.assignment.job)
        spoilt = worker.assignment.job in self.spoilt_jobs
        if worker.session.lost or spoilt or job.cancel_requested_at is not None or job.state is JobState.CANCELLED:
            return
        head = worker.goodbye.head if worker.goodbye else worker.parent
        assert job.head == head, "a checkpoint that was saved has been forgotten"

    def _offer_a_fork(self, worker: Worker) -> None:
        assert worker.assignment is not None
        self.spoilt_jobs.add(worker.assignment.job)
        super()._offer_a_fork(worker)

    def _offer_a_torn_file(self, worker: Worker) -> None:
        assert isinstance(worker, OfflineWorker)
        assert worker.assignment is not None
        if not worker.can_upload:
            return
        self.spoilt_jobs.add(worker.assignment.job)
        super()._offer_a_torn_file(worker)

    @invariant()
    def nothing_printed_by_a_stranger_counts(self) -> None:
        with self.world.ctx.uow() as tx:
            assert all(lease.last_seq < 999_999 for lease in tx.leases.live())

    @staticmethod
    def _work_to_the_end(worker: Worker) -> None:
        if worker.assignment is None:
            worker.start()
        assert worker.assignment is not None
        while worker.step < worker.assignment.spec.total_steps:
            worker.step += 1
            worker.save()
        worker.finish()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_kind", DATABASES)
def test_promises_hold_for_machines_that_cannot_call(database_kind: str, make_database: Any, tmp_path: Path) -> None:
    """The module's docstring says which guard was removed to see this fail."""
    runs = iter(range(10**6))

    def machine() -> Promises:
        folder = tmp_path / f"run-{next(runs)}"
        folder.mkdir()
        return OfflinePromises(OfflineWorld(make_database(), folder))

    run_state_machine_as_test(
        machine,  # pyright: ignore[reportArgumentType]  any callable that makes one will do
        settings=settings(
            max_examples=60 if database_kind == "sqlite" else 12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )
