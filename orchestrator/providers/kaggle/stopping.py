"""Ending a session without losing what it made: cancel it, and delete its kernel only where that does not help.

Kaggle names a session's number to nobody but the session itself, which prints it as its first line. A kernel that is deleted
takes its files with it; one that is cancelled is saved like any that ends.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.providers.kaggle.client import Quota
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.launch import KernelPlace
from orchestrator.providers.kaggle.outputs import gather, save_log
from orchestrator.providers.kaggle.records import Notes

OBEYED_WITHIN_S = 300.0
"""A session that runs on for so long after its cancel is deaf to it."""
SAVING_S = 900.0
"""Until Kaggle has saved what a session left, it is not over and shows no file: about two minutes per gigabyte."""
CANCELLED = "stopped by cancelling its session"
_SESSION = re.compile(rb"^trainhop: kaggle session ([0-9]{1,20})\r?\n", re.MULTILINE)
_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Wish:
    """That a session should end: wished at `now` (epoch seconds) in Kaggle's `state` of it, by name and in small letters."""

    place: KernelPlace
    notes: Notes
    state: str
    now: float


def session_id(notes: Notes) -> int | None:
    """The number that a session's log gives as its own; the first one counts, for what comes later may be anybody's text."""
    with contextlib.suppress(FileNotFoundError), notes.log.open("rb") as log:
        if found := _SESSION.search(log.read(_HEAD_BYTES)):
            return int(found[1])
    return None


def cancel(wish: Wish) -> str:
    """Have a session cancelled; empty while that is under way, otherwise why its kernel must be deleted.

    Raises `ProviderUnavailable` if Kaggle does not answer: the wish may be repeated.
    """
    if wish.state == "queued":
        return "it had not begun"
    number = _learnt(wish)
    if number is None:
        return "its log does not tell its number, without which Kaggle cancels nothing"
    noted = wish.notes.read()
    if not noted.stop_since:
        noted = wish.notes.write(stop_since=wish.now)
    heard = wish.state == "cancel_requested"
    waited_s, patience_s = wish.now - noted.stop_since, SAVING_S if heard else OBEYED_WITHIN_S
    if not 0 <= waited_s < patience_s:  # a clock that was set back says nothing of how long it has been
        return f"Kaggle did not obey a cancel within {patience_s / 60:.0f} minutes"
    if heard or noted.cancelled:
        return ""
    return _ask(wish, number)


def _learnt(wish: Wish) -> int | None:
    if (number := session_id(wish.notes)) is None:
        with contextlib.suppress(ProviderUnavailable):
            save_log(wish.place.connection, wish.place.owner, wish.place.slug, wish.notes)
        number = session_id(wish.notes)
    return number


def _ask(wish: Wish, number: int) -> str:
    try:
        wish.place.connection.cancel(number)
    except KaggleError as refusal:
        if refusal.status in (401, 429):
            raise
        return f"Kaggle refused to cancel its session: {refusal.words}"
    wish.notes.write(cancelled=True)
    return ""


def delete(wish: Wish, why: str, *, alone: bool) -> str:
    """Take what can be had, then delete the kernel, which ends its run; returns that in words.

    `alone` says that no other session of this account runs: Kaggle reserves GPU hours exactly while one does, and so they tell
    whether the delete was obeyed.
    """
    place = wish.place
    with contextlib.suppress(ProviderUnavailable):
        save_log(place.connection, place.owner, place.slug, wish.notes)
    with contextlib.suppress(ProviderUnavailable):
        gather(place.connection, place.owner, place.slug, wish.notes)
    place.connection.delete_kernel(place.owner, place.slug)
    said = f"stopped by deleting its kernel ({why})"
    quota: Quota | None = None
    with contextlib.suppress(ProviderUnavailable):
        quota = place.connection.quota()
    if quota is not None and quota.reserved_s > 0 and alone:
        return f"{said}; Kaggle still reserves {quota.reserved_s / 3600:.1f} GPU hours for it"
    return said
