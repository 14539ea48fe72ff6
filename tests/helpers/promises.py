"""The promises that must hold after every event, whatever the events were."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.domain.lifecycle import CheckpointState, JobState
from orchestrator.ports.stores import ObjectMissing
from tests.helpers.world import World


class Promises:
    """Looks at the database and the store of a world, and remembers what it saw there.

    Each method looks at these jobs and raises `AssertionError` if a promise is broken.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._fences: dict[str, int] = {}
        self._heads: dict[str, int] = {}

    def check(self, jobs: Iterable[str], consenting: set[str]) -> None:
        """All of them. `consenting` are the members who let jobs run on their account."""
        jobs = list(jobs)
        self.one_live_lease_exactly_where_the_state_says_so(jobs)
        self.fences_only_grow(jobs)
        self.the_head_is_whole_and_ends_an_unbroken_chain(jobs)
        self.everyone_stays_on_their_own_account(consenting)
        self.success_means_a_stored_adapter(jobs)

    def one_live_lease_exactly_where_the_state_says_so(self, jobs: Iterable[str]) -> None:
        with self._world.ctx.uow() as tx:
            live = [lease.job_id for lease in tx.leases.live()]
        for ident in jobs:
            assert live.count(ident) == (1 if self._world.job(ident).state.holds_lease else 0)

    def fences_only_grow(self, jobs: Iterable[str]) -> None:
        for ident in jobs:
            fence = self._world.job(ident).fence
            assert fence >= self._fences.get(ident, 0)
            self._fences[ident] = fence

    def the_head_is_whole_and_ends_an_unbroken_chain(self, jobs: Iterable[str]) -> None:
        for ident in jobs:
            job = self._world.job(ident)
            assert job.head_step >= self._heads.get(ident, 0), "committed work was lost"
            self._heads[ident] = job.head_step
            with self._world.ctx.uow() as tx:
                by_id = {c.sha256: c for c in tx.checkpoints.of_job(ident)}
            if job.head is None:
                continue
            head = by_id.get(job.head)
            assert head is not None, "the head is unknown"
            assert head.state is CheckpointState.COMMITTED
            assert self._is_stored(head.key, head.sha256), "the head's file is gone or changed"
            committed = [c for c in by_id.values() if c.state in {CheckpointState.COMMITTED, CheckpointState.PRUNED}]
            steps, cursor = 0, job.head
            while cursor is not None:
                cursor, steps = by_id[cursor].parent, steps + 1
            assert steps == len(committed), "the chain forks"

    def everyone_stays_on_their_own_account(self, consenting: set[str]) -> None:
        for lease in self._world.all_leases():
            owner = self._world.job(lease.job_id).member_id
            assert lease.account_id == f"{owner}-sim"
            assert owner in consenting, "a session without its owner's consent"

    def success_means_a_stored_adapter(self, jobs: Iterable[str]) -> None:
        for ident in jobs:
            job = self._world.job(ident)
            if job.state is JobState.SUCCEEDED:
                assert job.head_step == job.total_steps
                assert self._is_stored(job.adapter_key or "x", job.adapter_zip_sha256), "the adapter is gone or changed"

    def _is_stored(self, key: str, sha256: str | None) -> bool:
        try:
            return self._world.store.stat(key).sha256 == sha256
        except ObjectMissing:
            return False
