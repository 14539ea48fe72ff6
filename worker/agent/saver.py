"""Saving in the background: a snapshot becomes a file, an upload and an offer while training goes on.

The server commits checkpoints as a chain. While it is away, at most two are kept: the oldest unanswered one (it may have
been committed without our hearing of it) and the newest, which continues it; those between are dropped.
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
from worker.agent.uplink import Refused, ServerAway, Stale
from worker.shared import checkpoint_file
from worker.shared.messages import Grant, Manifest, Offer, OfferReply
from worker.training.interface import Snapshot

RETRY_S = 2.0
TRIES_BEFORE_KEEPING = 5
"""Failed uploads after which a machine that cannot call keeps its files for the provider to hand over."""


@dataclass(frozen=True)
class Kept:
    """A file that waits on this machine to be handed over, and the key under which it will be stored."""

    key: str
    path: Path


class Counter(Protocol):
    """What the saver needs of the session around it."""

    def grant(self) -> Grant:
        """Permission to upload one checkpoint; may raise an `UplinkError`."""
        ...

    def keep(self, path: Path, why: str) -> Kept | None:
        """Move a file that cannot be uploaded to where the provider finds it, under a key of our own; may raise `OSError`.

        None where the server is asked instead.
        """
        ...

    def offer(self, *, key: str, sha256: str, size: int, manifest: Manifest) -> Offer:
        """Say to the server that the checkpoint lies there."""
        ...

    def withdraw(self, offer: Offer) -> None:
        """Take back an offer that has not been delivered."""
        ...

    def refused(self, why: str) -> None:
        """No checkpoint of this session will be accepted any more."""
        ...

    def complain(self, text: str) -> None:
        """Tell the log."""
        ...


@dataclass(kw_only=True)
class _Saved:
    """A written checkpoint on its way home; `offer` is set once it is uploaded or `kept` on this machine, and offered."""

    path: Path
    sha256: str
    size: int
    manifest: Manifest
    grant: Grant | None = None
    offer: Offer | None = None
    kept: bool = False
    tries: int = 0


def bring_home(path: Path, grant: Callable[[], Grant], timeout_s: float) -> str:
    """Upload a file by whichever grant takes it; returns the key. Raises the last `OSError` or `UplinkError`."""
    granted: Grant | None = None
    for attempt in stamina.retry_context(on=(ServerAway, OSError), attempts=None, timeout=timeout_s):
        with attempt:
            granted = granted or grant()
            try:
                transfers.upload(granted, path)
            except transfers.UnusableGrant:
                granted = None
                raise
            return granted.key
    raise ServerAway(f"{path.name} could not be uploaded while this session lasted")


class Saver:
    """Takes one snapshot at a time and brings it home on a thread of its own."""

    def __init__(self, spool: Path, parent: str | None, budget: Budget, cadence: Cadence, counter: Counter) -> None:
        spool.mkdir(exist_ok=True)
        self._spool, self._committed = spool, parent
        self._budget, self._cadence, self._counter = budget, cadence, counter
        self._changed = threading.Condition()
        self._snapshot: Snapshot | None = None
        self._writing = self._stopped = self._leaving = False
        self._chain: list[_Saved] = []
        self._spare: list[Grant] = []
        self.problem = ""
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is still being written; the next one would have to wait."""
        return self._writing or self._snapshot is not None

    def take(self, snapshot: Snapshot) -> None:
        """Save this snapshot; waits while another is being written."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self.is_busy)
            self._snapshot = snapshot
            self._changed.notify_all()

    def answered(self, offer: Offer, reply: OfferReply) -> None:
        """The server has decided on an offer."""
        with self._changed:
            if not self._chain or self._chain[0].sha256 != offer.sha256:
                return
            if reply.committed:
                self._committed = offer.sha256
                self._chain.pop(0).path.unlink(missing_ok=True)
            self._changed.notify_all()
        if not reply.committed:
            self.stop()
            self._counter.refused(f"the checkpoint of step {offer.manifest.step} was refused: {reply.refusal}")

    @property
    def head(self) -> str | None:
        """The newest checkpoint that was offered; where this session began if none was."""
        with self._changed:
            offered = [saved.sha256 for saved in self._chain if saved.offer is not None]
            return offered[-1] if offered else self._committed

    def settle(self, timeout_s: float) -> bool:
        """Wait until the newest snapshot is committed, or kept for good; False if that failed or takes longer."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or not self._is_out, max(0.0, timeout_s))
            if not self._is_out:
                return not self.problem
            late = [] if self.is_busy or self._stopped else self._errands()
            self._stopped |= bool(late)
        return bool(late) and all(self._kept(saved, "time is up") for saved in late) and not self.problem

    @property
    def _is_out(self) -> bool:
        return self.is_busy or any(not saved.kept for saved in self._chain)

    def stop(self) -> None:
        """Give up whatever is not home yet."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._snapshot is not None or self._stopped or self._errands())
                if self._stopped:
                    return
                snapshot, self._snapshot = self._snapshot, None
                self._writing = snapshot is not None
            if snapshot is not None:
                self._write(snapshot)
            self._run_errands()

    def _errands(self) -> list[_Saved]:
        return [saved for saved in self._chain if saved.offer is None]

    def _write(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        with self._changed:
            if len(self._chain) > 1:
                # In one go with the look: the answer to the one before it would send this one on its way.
                self._drop(self._chain.pop())
            parent = self._chain[-1].sha256 if self._chain else self._committed
        manifest = snapshot.manifest.model_copy(update={"parent": parent})
        path = self._spool / f"step-{manifest.step}.safetensors"
        try:
            snapshot.ready()
            sha256, size = checkpoint_file.write(path, snapshot.tensors, manifest)
            found = [_Saved(path=path, sha256=sha256, size=size, manifest=manifest)]
            self.problem = ""
        except OSError as error:
            found = []
            self.problem = f"the checkpoint of step {manifest.step} could not be written: {error.strerror or error}"
            self._counter.complain(f"{self.problem}; free some space, training goes on")
        took = time.monotonic() - began
        self._cadence.wrote(took)
        self._budget.saved(took, 0.0)
        with self._changed:
            self._chain += found
            self._writing = False
            self._changed.notify_all()

    def _drop(self, saved: _Saved) -> None:
        if saved.offer is not None:
            self._counter.withdraw(saved.offer)
        # An address that has taken a file takes no other; one that was only tried still does, and so does a path.
        if saved.grant and not saved.grant.resumable and (saved.offer is None or saved.grant.path is not None):
            self._spare.append(saved.grant)
        saved.path.unlink(missing_ok=True)

    def _run_errands(self) -> None:
        for saved in self._errands():
            step = saved.manifest.step
            try:
                self._bring_home(saved)
            except (ServerAway, OSError) as error:
                saved.tries += 1
                self._counter.complain(f"the checkpoint of step {step} is not in the store yet: {error}")
                if (self._leaving or saved.tries >= TRIES_BEFORE_KEEPING) and self._kept(saved, str(error)):
                    continue
                with self._changed:
                    self._changed.wait_for(lambda: self._snapshot is not None or self._stopped, RETRY_S)
                return
            except (Stale, Refused) as error:
                if self._kept(saved, str(error)):
                    continue
                self.stop()
                self._counter.refused(str(error))
                return

    def _bring_home(self, saved: _Saved) -> None:
        began = time.monotonic()
        if saved.grant is None:
            saved.grant = self._spare.pop() if self._spare else self._counter.grant()
        try:
            transfers.upload(saved.grant, saved.path)
        except transfers.UnusableGrant:
            saved.grant = None
            raise
        self._budget.saved(0.0, time.monotonic() - began)
        with self._changed:
            if not self._stopped:
                self._offer(saved, saved.grant.key)

    def _offer(self, saved: _Saved, key: str) -> None:
        saved.offer = self._counter.offer(key=key, sha256=saved.sha256, size=saved.size, manifest=saved.manifest)

    def _kept(self, saved: _Saved, why: str) -> bool:
        """Whether the file lies where the provider will find it, and was offered there."""
        with self._changed:
            if saved.offer is not None:
                return saved.kept
            try:
                kept = self._counter.keep(saved.path, why)
            except OSError as error:
                self._counter.complain(f"the checkpoint of step {saved.manifest.step} cannot be kept either: {error}")
                return False
            if kept is None:
                return False
            saved.path, saved.kept = kept.path, True
            self._offer(saved, kept.key)
            self._changed.notify_all()
            return True
