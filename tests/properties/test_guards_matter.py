"""Negative controls: take one guard out, and the machine of `test_promises` must find that out.

A property test that cannot fail proves nothing. Each case names the promise, the guard and what stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from orchestrator.domain import scheduling
from orchestrator.domain.jobs import Job, Lease
from orchestrator.services import capacity, checkpoints, reconcile
from tests.helpers.world import World
from tests.properties.test_promises import Promises


@dataclass(frozen=True)
class Guard:
    """Where a guard lives and what it is replaced by."""

    promise: str
    owner: Any
    name: str
    without: Any


def _no_refusal(offer: Any, lease: Any, job: Any, known: Any) -> str:
    if offer.manifest.parent != job.head:
        return ""
    return _real_refusal(offer, lease, job, known)


_real_refusal = checkpoints._refusal
_real_fits = scheduling.fits


def _fits_anyone(job: Any, place: Any) -> Any:
    obstacle = _real_fits(job, place)
    return None if obstacle is not None and "another member" in obstacle.reason else obstacle


def _stat_inside(ctx: Any, offer: Any) -> Any:
    with ctx.uow():
        ctx.stores.current().stat(offer.key)
    return _real_check_offer(ctx, offer)


_real_check_offer = checkpoints.check_offer

GUARDS = [
    # Lease and job are guarded each for itself, and either guard alone suffices: both must go before a zombie is heard.
    Guard("2: a stale fence is heard", (Lease, Job), "guard", lambda self, fence=0: None),
    Guard("3: an unread file becomes the head", checkpoints, "_read_back", lambda store, offer: ""),
    Guard("4: the chain forks", checkpoints, "_refusal", _no_refusal),
    Guard("7: the store is called inside a transaction", checkpoints, "check_offer", _stat_inside),
    Guard("10: a lost machine keeps its job", reconcile, "_expire", lambda ctx, lease, why, seen=None: None),
    Guard("11: a job runs on somebody else's account", scheduling, "fits", _fits_anyone),
    Guard("11: a job runs without the owner's consent", capacity, "not_allowed", lambda ctx, account: ""),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.promise)
def test_removing_the_guard_is_noticed(
    guard: Guard, make_database: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the code is replaced on purpose: here the missing guard is what is tested."""
    runs = iter(range(10**6))

    def machine() -> Promises:
        folder = tmp_path / f"run-{next(runs)}"
        folder.mkdir()
        return Promises(World(make_database(), folder))

    for owner in guard.owner if isinstance(guard.owner, tuple) else (guard.owner,):
        monkeypatch.setattr(owner, guard.name, guard.without)  # the missing guard is what is tested

    with pytest.raises(BaseException):  # noqa: B017, PT011  any invariant or rule may be the one that notices
        run_state_machine_as_test(
            machine,  # pyright: ignore[reportArgumentType]  any callable that makes one will do
            settings=settings(
                max_examples=1500,  # found after some 90; of 300 one run in twenty found nothing
                stateful_step_count=50,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
                database=None,
            ),
        )
