"""Guards of the promises, each with what stands in for it when it is taken out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.adapters.database.checkpoints import SqlCheckpointRepository
from orchestrator.domain import scheduling
from orchestrator.domain.jobs import Job, Lease
from orchestrator.ports.stores import StoreError
from orchestrator.services import capacity, checkpoints, dispatch, finishes, heads, reconcile
from orchestrator.services.stores import from_store
from worker.shared.checkpoint_header import CheckpointError


@dataclass(frozen=True)
class Mutant:
    """The product without one guard: `name` of each of `owners` is replaced by `without`."""

    owners: tuple[Any, ...]
    name: str
    without: Any

    def __post_init__(self) -> None:
        for owner in self.owners:
            getattr(owner, self.name)  # a guard that has moved is an error, and no mutant

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Take the guard out for a while."""
        real = [getattr(owner, self.name) for owner in self.owners]
        for owner in self.owners:
            setattr(owner, self.name, self.without)
        try:
            yield
        finally:
            for owner, guard in zip(self.owners, real, strict=True):
                setattr(owner, self.name, guard)


_refusal = checkpoints._refusal  # noqa: SLF001  guards are private
_check_offer, _fits = checkpoints.check_offer, scheduling.fits


def _forks(offer: Any, lease: Any, job: Any, known: Any) -> str:
    return "" if offer.manifest.parent != job.head else _refusal(offer, lease, job, known)


def _inside(ctx: Any, offer: Any) -> Any:
    with ctx.uow():
        ctx.stores.current().stat(offer.key)
    return _check_offer(ctx, offer)


def _fits_anyone(job: Any, place: Any) -> Any:
    obstacle = _fits(job, place)
    return None if obstacle is not None and "another member" in obstacle.reason else obstacle


def _unread(store: Any, offer: Any, **_: Any) -> Any:
    """Only the file's beginning is looked at, and its hash is not compared."""
    try:
        return checkpoints._stored_header(store, offer.key, offer.size)  # noqa: SLF001  guards are private
    except CheckpointError as error:
        return str(error)
    except StoreError as error:
        raise from_store(error) from error


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of a guard that raises or acts."""


def _no_refusal(*_: Any) -> str:
    return ""


MUTANTS = {
    "a stale fence is heard": Mutant((Lease, Job), "guard", _nothing),
    "an unread file becomes the head": Mutant((checkpoints,), "_read_back", _unread),
    "the chain forks": Mutant((checkpoints,), "_refusal", _forks),
    "the store is called in a transaction": Mutant((checkpoints,), "check_offer", _inside),
    "a lost machine keeps its job": Mutant((reconcile,), "_expire", _nothing),
    "a job runs on another member's account": Mutant((scheduling,), "fits", _fits_anyone),
    "a job runs without its owner's consent": Mutant((capacity,), "not_allowed", _no_refusal),
    "the head is pruned": Mutant((heads,), "prune", lambda committed, *_: [ident for ident, _ in committed]),
    "a file that a clone needs is deleted": Mutant((SqlCheckpointRepository,), "is_in_use", lambda *_: False),
    "an adapter is not read back": Mutant((finishes,), "check_adapter", _nothing),
    "more machines than slots": Mutant((dispatch,), "less_live", lambda places, _: places),
    "a silent machine is never stopped": Mutant((reconcile,), "_stop", _nothing),
    "an ended session is never cleared away": Mutant((reconcile,), "_clear_away", _nothing),
}
