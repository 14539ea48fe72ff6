"""Ends a session without losing its files. It is cancelled, and its kernel is deleted only if that fails.

Only the session itself knows its number, and prints it as its first line. Deleting a kernel deletes its files.
Cancelling it keeps them, like any other end.
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
from orchestrator.providers.kaggle.records import KernelNotes

OBEYED_WITHIN_S = 300.0
"""A session that still runs after this time ignores its cancellation."""
SAVING_S = 900.0
"""A session ends and lists its files only after Kaggle has stored them: about two minutes per gigabyte."""
CANCELLED = "stopped by cancelling its session"
_SESSION = re.compile(rb"^trainhop: kaggle session ([0-9]{1,20})\r?\n", re.MULTILINE)
_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request to stop a session at `now` (epoch seconds). `state` is Kaggle's state in lower case."""

    place: KernelPlace
    notes: KernelNotes
    state: str
    now: float


def session_id(notes: KernelNotes) -> int | None:
    """The session's number from its log. Only the first one is valid, because later text may come from any program."""
    with contextlib.suppress(FileNotFoundError), notes.log.open("rb") as log:
        if found := _SESSION.search(log.read(_HEAD_BYTES)):
            return int(found[1])
    return None


def cancel(wish: Wish) -> str:
    """Cancel a session. Returns "" while that is in progress, otherwise the reason why its kernel must be deleted.

    Raises `ProviderUnavailable` if Kaggle does not respond. The caller may try again.
    """
    if wish.state == "queued":
        return "it had not started"
    number = _learnt(wish)
    if number is None:
        return "its log has no session number, which Kaggle needs to cancel it"
    record = wish.notes.read()
    if not record.stop_since:
        record = wish.notes.write(stop_since=wish.now)
    heard = wish.state == "cancel_requested"
    waited_s, patience_s = wish.now - record.stop_since, SAVING_S if heard else OBEYED_WITHIN_S
    if not 0 <= waited_s < patience_s:  # the time is unknown if the clock was set back
        return f"Kaggle did not cancel it within {patience_s / 60:.0f} minutes"
    if heard or record.cancelled:
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
    """Save the log and the files, then delete the kernel, which ends its run. Returns a description.

    `alone` means that no other session of this account runs. Kaggle reserves GPU hours only while a session runs, so
    they show whether the deletion had an effect.
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
        return f"{said}, Kaggle still reserves {quota.reserved_s / 3600:.1f} GPU hours for it"
    return said
