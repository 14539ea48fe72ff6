"""Saves in the background: a snapshot becomes a file, an upload and an offer while training continues.

The server commits checkpoints as a chain. While it is unreachable, at most two are kept: the oldest unanswered one,
which may be committed already, and the newest one, which continues it. Those in between are dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import stamina

from worker.agent import transfers
from worker.agent.deadline import Budget, Cadence
from worker.agent.limits import ROOM_S
from worker.agent.uplink import Refused, ServerAway, Stale
from worker.shared import checkpoint_file
from worker.shared.manifest import Manifest
from worker.shared.messages import Grant, Offer, OfferReply
from worker.training.interface import Snapshot

RETRY_S = 2.0
MAX_RETRY_S = 60.0
"""Longest pause between two attempts to upload a file that the store does not take."""
TRIES_TO_THE_END = 10
"""A session that only waits for an upload pauses no longer than this part of the time that it has left."""
TRIES_BEFORE_KEEPING = 5
"""Failed uploads after which an offline session keeps its files for the provider to hand over."""


@dataclass(frozen=True)
class Kept:
    """A file that stays on this machine until the provider hands it over, and its future key in the store."""

    key: str
    path: Path


class SaverContext(Protocol):
    """The part of the session that the saver uses."""

    def grant(self) -> Grant:
        """Permission to upload one checkpoint. May raise an `UplinkError`."""
        ...

    def send(self, grant: Grant, path: Path) -> None:
        """Upload a file. Raises the errors of `transfers.upload`."""
        ...

    def unsaved(self, why: str) -> None:
        """Tell people why a file is not in the store yet, or with "" that it is there now."""
        ...

    def keep(self, path: Path, why: str) -> Kept | None:
        """Move a file that cannot be uploaded to the folder that the provider hands over. May raise `OSError`.

        None in an online session, which asks the server for another grant instead.
        """
        ...

    def offer(self, *, key: str, sha256: str, size: int, manifest: Manifest) -> Offer:
        """Tell the server that the checkpoint is stored under this key."""
        ...

    def withdraw(self, offer: Offer) -> None:
        """Withdraw an offer that was not delivered."""
        ...

    def refused(self, why: str) -> None:
        """Called when the server will accept no further checkpoint of this session."""
        ...

    def warn(self, text: str) -> None:
        """Write a problem to the log."""
        ...


@dataclass(kw_only=True)
class _Saved:
    """A written checkpoint that is not committed yet.

    `offer` is set once the file was uploaded or `kept` on this machine, and offered.
    """

    path: Path
    sha256: str
    size: int
    manifest: Manifest
    grant: Grant | None = None
    offer: Offer | None = None
    kept: bool = False
    tries: int = 0


def pause_after(tries: int, first_s: float, left_s: float | None) -> float:
    """Seconds to wait after so many failures. They double up to `MAX_RETRY_S`.

    A session that only waits for this has `left_s` seconds left.
    """
    return min(_longest_pause(first_s, left_s), first_s * 2 ** min(tries - 1, 10))


def _longest_pause(first_s: float, left_s: float | None) -> float:
    return max(first_s, MAX_RETRY_S if left_s is None else min(MAX_RETRY_S, left_s / TRIES_TO_THE_END))


_WHAT = {".zip": "the adapter is", ".bin": "the export is"}


def upload_with_retry(
    path: Path,
    grant: Callable[[], Grant],
    send: Callable[[Grant, Path], None],
    unsaved: Callable[[str], None],
    timeout_s: float,
) -> str:
    """Upload the result of a job, with a new grant if one becomes unusable. Returns its key.

    The pauses between the attempts grow. `unsaved` is called as in `SaverContext`. Raises the last `OSError` or
    `UplinkError` after `timeout_s` seconds.
    """
    granted: Grant | None = None
    what = _WHAT.get(path.suffix, "the answers are")
    for attempt in stamina.retry_context(
        on=(ServerAway, OSError), attempts=None, timeout=timeout_s, wait_max=_longest_pause(RETRY_S, timeout_s)
    ):
        with attempt:
            try:
                granted = granted or grant()
                send(granted, path)
            except (ServerAway, OSError) as error:
                if isinstance(error, transfers.UnusableGrant):
                    granted = None
                unsaved(f"{what} not in the store yet: {error}")
                raise
            unsaved("")
            return granted.key
    raise ServerAway(f"{path.name} could not be uploaded before this session ended")


class Saver:
    """Takes one snapshot at a time, writes it and uploads it on a thread of its own.

    A snapshot that cannot be written is kept in memory and tried again until the next one takes its place. The last one
    is given up after `room_s` seconds.
    """

    def __init__(
        self,
        spool: Path,
        parent: str | None,
        budget: Budget,
        cadence: Cadence,
        context: SaverContext,
        *,
        room_s: float = ROOM_S,
        retry_s: float = RETRY_S,
    ) -> None:
        spool.mkdir(exist_ok=True)
        self._spool, self._committed = spool, parent
        self._budget, self._cadence, self._context = budget, cadence, context
        self._changed = threading.Condition()
        self._room_s, self._retry_s = room_s, retry_s
        self._snapshot: Snapshot | None = None
        self._unwritten: Snapshot | None = None
        self._full_since: float | None = None
        self._writing = self._stopped = self._leaving = False
        self._chain: list[_Saved] = []
        self._spare: list[Grant] = []
        self.problem = ""
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is still being written. The next one would have to wait."""
        return self._writing or self._snapshot is not None

    def take(self, snapshot: Snapshot) -> None:
        """Save this snapshot. Blocks while another one is being written."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self.is_busy)
            self._snapshot = snapshot
            self._changed.notify_all()

    def on_reply(self, offer: Offer, reply: OfferReply) -> None:
        """Apply the server's reply to an offer."""
        with self._changed:
            if not self._chain or self._chain[0].sha256 != offer.sha256:
                return
            if reply.committed:
                self._committed = offer.sha256
                self._chain.pop(0).path.unlink(missing_ok=True)
            self._changed.notify_all()
        if not reply.committed:
            self.stop()
            self._context.refused(f"the checkpoint of step {offer.manifest.step} was refused: {reply.refusal}")

    @property
    def head(self) -> str | None:
        """sha256 of the newest offered checkpoint, or of the one that this session started from."""
        with self._changed:
            offered = [saved.sha256 for saved in self._chain if saved.offer is not None]
            return offered[-1] if offered else self._committed

    def wait_until_saved(self, timeout_s: float) -> bool:
        """Wait until the newest snapshot is committed or kept.

        False if that failed or took longer than `timeout_s` seconds.
        """
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or not self._has_unsaved, max(0.0, timeout_s))
            if not self._has_unsaved:
                return not self.problem
            late = [] if self.is_busy or self._stopped else self._not_offered()
            self._stopped |= bool(late)
        return bool(late) and all(self._kept(saved, "the time limit is reached") for saved in late) and not self.problem

    @property
    def _has_unsaved(self) -> bool:
        return self.is_busy or self._unwritten is not None or any(not saved.kept for saved in self._chain)

    def stop(self) -> None:
        """Discard all checkpoints that are not uploaded yet."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (snapshot := self._next()) is not None or not self._stopped:
            try:
                if snapshot is not None:
                    self._write(snapshot)
                self._upload_all()
            except Exception as error:  # noqa: BLE001  the session goes on, and saves again
                with self._changed:
                    self._writing = False
                    self.problem = f"a checkpoint could not be saved ({type(error).__name__}: {error})"
                    self._changed.notify_all()
                self._context.warn(self.problem)
                self._pause()

    def _next(self) -> Snapshot | None:
        """The next snapshot to write. None if only files are to be uploaded, or if the saver was stopped."""
        with self._changed:
            pause_s = None if self._unwritten is None else self._retry_s
            self._changed.wait_for(lambda: self._snapshot is not None or self._stopped or self._not_offered(), pause_s)
            snapshot = None if self._stopped else self._snapshot or self._unwritten
            self._snapshot = self._unwritten = None
            self._writing = snapshot is not None
            return snapshot

    def _pause(self, tries: int = 1) -> None:
        with self._changed:
            leaving = self._leaving
            pause_s = pause_after(tries, self._retry_s, self._budget.left if leaving else None)
            self._changed.wait_for(
                lambda: self._snapshot is not None or self._stopped or self._leaving != leaving, pause_s
            )

    def _not_offered(self) -> list[_Saved]:
        return [saved for saved in self._chain if saved.offer is None]

    def _write(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        with self._changed:
            if len(self._chain) > 1:
                # Under the same lock as the check, or the reply to the offer before it would start this upload.
                self._drop(self._chain.pop())
            parent = self._chain[-1].sha256 if self._chain else self._committed
        manifest = snapshot.manifest.model_copy(update={"parent": parent})
        path = self._spool / f"step-{manifest.step}.safetensors"
        try:
            snapshot.ready()
            sha256, size = checkpoint_file.write(path, snapshot.tensors, manifest)
            written = [_Saved(path=path, sha256=sha256, size=size, manifest=manifest)]
            self.problem, self._full_since = "", None
            took = time.monotonic() - began
            self._cadence.record_write(took)
            self._budget.record_save(took, 0.0)
        except OSError as error:
            written = []
            self.problem = f"the checkpoint of step {manifest.step} could not be written: {error.strerror or error}"
            if self._full_since is None:
                self._context.warn(f"{self.problem}; free some space, training continues")
            self._keep_in_memory(snapshot)
        with self._changed:
            self._chain += written
            self._writing = False
            self._changed.notify_all()

    def _keep_in_memory(self, snapshot: Snapshot) -> None:
        """For another try, unless the session ends and has waited long enough for room."""
        now = time.monotonic()
        self._full_since = now if self._full_since is None else self._full_since
        with self._changed:
            if not self._leaving or now - self._full_since < self._room_s:
                self._unwritten = snapshot

    def _drop(self, saved: _Saved) -> None:
        if saved.offer is not None:
            self._context.withdraw(saved.offer)
        # A URL that has received a file accepts no other one. A failed upload leaves it usable, and so is any path.
        if saved.grant and not saved.grant.resumable and (saved.offer is None or saved.grant.path is not None):
            self._spare.append(saved.grant)
        saved.path.unlink(missing_ok=True)

    def _upload_all(self) -> None:
        for saved in self._not_offered():
            step = saved.manifest.step
            try:
                self._upload(saved)
            except (ServerAway, OSError) as error:
                saved.tries += 1
                self._context.unsaved(f"the checkpoint of step {step} is not in the store yet: {error}")
                if (self._leaving or saved.tries >= TRIES_BEFORE_KEEPING) and self._kept(saved, str(error)):
                    continue
                self._pause(saved.tries if isinstance(error, transfers.NotTaken) else 1)
                return
            except (Stale, Refused) as error:
                if self._kept(saved, str(error)):
                    continue
                self.stop()
                self._context.refused(str(error))
                return

    def _upload(self, saved: _Saved) -> None:
        began = time.monotonic()
        if saved.grant is None:
            saved.grant = self._spare.pop() if self._spare else self._context.grant()
        try:
            self._context.send(saved.grant, saved.path)
        except transfers.UnusableGrant:
            saved.grant = None
            raise
        self._context.unsaved("")
        self._budget.record_save(0.0, time.monotonic() - began)
        with self._changed:
            if not self._stopped:
                self._offer(saved, saved.grant.key)

    def _offer(self, saved: _Saved, key: str) -> None:
        saved.offer = self._context.offer(key=key, sha256=saved.sha256, size=saved.size, manifest=saved.manifest)

    def _kept(self, saved: _Saved, why: str) -> bool:
        """Whether the file is in the folder that the provider hands over, and was offered from there."""
        with self._changed:
            if saved.offer is not None:
                return saved.kept
            try:
                kept = self._context.keep(saved.path, why)
            except OSError as error:
                self._context.warn(
                    f"the checkpoint of step {saved.manifest.step} could not be kept on this machine either: {error}"
                )
                return False
            if kept is None:
                return False
            saved.path, saved.kept = kept.path, True
            self._offer(saved, kept.key)
            self._changed.notify_all()
            return True
