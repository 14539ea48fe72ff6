"""Tests whether a place's compare-and-swap works: of two writes with the same parent exactly one may win."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable

from worker.shared.shared_places.errors import LostError
from worker.shared.shared_places.place import Place
from worker.shared.shared_places.retries import Retries, persist

PROBE = "probe.json"
TRIES = 5


def has_compare_and_swap(
    place: Place,
    retries: Retries,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether exactly one of two writes wins. It also shows whether this session may write there at all."""
    for _ in range(TRIES):
        won = persist(lambda: _race(place), retries, clock=clock, sleep=sleep)
        if any(won):
            return not all(won)
        sleep(retries.first_s)  # another session has just written its own probe
    return False


def _race(place: Place) -> list[bool]:
    parent = place.read_doc(PROBE)
    return [_is_written(place, parent) for _ in range(2)]


def _is_written(place: Place, parent: bytes | None) -> bool:
    try:
        place.swap_doc(PROBE, parent, json.dumps({"nonce": secrets.token_hex(16)}).encode())
    except LostError:
        return False
    return True
