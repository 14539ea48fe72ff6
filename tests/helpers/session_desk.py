"""Outbox and saver wired as a session does it, to a server in memory."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.manifests import manifest
from worker.agent import transfers
from worker.agent.deadline import Budget, Cadence
from worker.agent.outbox import Outbox
from worker.agent.saver import Kept, Saver
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Manifest, Recipe
from worker.shared.messages import (
    Action,
    Directive,
    Finish,
    Grant,
    GrantKind,
    MetricRow,
    Offer,
    OfferReply,
    Phase,
    Release,
    Report,
    Started,
    Ticket,
)
from worker.training.interface import Snapshot

PATIENCE_S = 20.0
SPEC = JobSpec.model_validate({"base_model": "m", "datasets": [{"path": "sha256:" + "0" * 64}], "max_steps": 99})


class Server:
    """Implements `worker.agent.uplink.Uplink` in memory; `mood` is called before every answer and may raise."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.heard = folder, []
        self.mood: Callable[[], None] = lambda: None
        self.directive = Directive(action=Action.CONTINUE)
        self.head: str | None = None
        self.granted = 0
        self.next: Ticket | None = None
        """The ticket with which a session that can continue does so."""
        self.grants_in_advance = False
        """Whether grants came with the assignment, so that no server is needed for them."""
        self.store_url: str | None = None
        """Where the store is that takes uploads; by default a folder."""
        self.progress = threading.Condition()

    def _hear(self, message: Any) -> None:
        self.mood()
        with self.progress:
            self.heard.append(message)
            self.progress.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.progress:
            assert self.progress.wait_for(condition, PATIENCE_S), "it never came"

    def started(self, message: Started) -> None:
        self._hear(message)

    def report(self, message: Report) -> Directive:
        self._hear(message)
        return self.directive

    def offer(self, message: Offer) -> OfferReply:
        self._hear(message)
        if message.manifest.parent != self.head:
            return OfferReply(committed=False, refusal="another head")
        with self.progress:
            self.head = message.sha256
            self.progress.notify_all()
        return OfferReply(committed=True)

    def release(self, message: Release) -> None:
        self._hear(message)

    def finish(self, message: Finish) -> Ticket | None:
        self._hear(message)
        return self.next if message.can_continue else None

    def grants(self, fence: int, kind: GrantKind, count: int, *, through_server: bool = False) -> list[Grant]:
        if not self.grants_in_advance:
            self.mood()
        self.granted += 1
        if self.store_url is not None:
            return [Grant(key=f"k{self.granted}", kind=kind, url=f"{self.store_url}/{self.granted}")]
        return [Grant(key=f"k{self.granted}", kind=kind, path=str(self.folder / f"store-{self.granted}"))]


class Desk:
    """An outbox and a saver wired to each other as the runner does it."""

    def __init__(self, server: Server, folder: Path, saver: type[Saver] = Saver) -> None:
        self.server = server
        self.directives: list[Directive] = []
        self.ends: list[str] = []
        self.refusals: list[str] = []
        self.warnings: list[str] = []
        self.unsaved_words: list[str] = []
        """Why the newest file is not in the store, and "" whenever one arrived."""
        self.before_withdrawal: Callable[[Offer], None] = lambda _: None
        clock_free = Cadence(21_600.0, 600.0)
        self.saver = saver(folder / "spool", None, Budget(600.0), clock_free, self)
        self.outbox = Outbox(
            server,
            folder / "outbox.jsonl",
            0.05,
            beat=self.beat,
            on_directive=self.directives.append,
            on_offer=self.saver.on_reply,
            on_stale=self.ends.append,
            warn=self.warn,
        )
        self.outbox.open()

    def beat(self) -> None:
        self.outbox.add(lambda seq: Report(lease="l", fence=1, seq=seq, step=0, phase=Phase.TRAIN))

    def say_step(self, step: int) -> None:
        row = MetricRow(step=step, values={"loss": 1.0})
        self.outbox.add(lambda seq: Report(lease="l", fence=1, seq=seq, step=step, phase=Phase.TRAIN, metrics=(row,)))

    def grant(self) -> Grant:
        return self.server.grants(1, GrantKind.CHECKPOINT, 1)[0]

    def offer(self, *, key: str, sha256: str, size: int, manifest: Manifest) -> Offer:
        offer = self.outbox.add(
            lambda seq: Offer(lease="l", fence=1, seq=seq, key=key, sha256=sha256, size=size, manifest=manifest),
            urgent=True,
        )
        assert isinstance(offer, Offer)
        return offer

    def send(self, grant: Grant, path: Path) -> None:
        transfers.upload(grant, path)

    def unsaved(self, why: str) -> None:
        self.unsaved_words.append(why)

    def keep(self, path: Path, why: str) -> Kept | None:
        return None

    def withdraw(self, offer: Offer) -> None:
        self.before_withdrawal(offer)
        self.outbox.withdraw(offer)

    def refused(self, why: str) -> None:
        self.refusals.append(why)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def snapshot(step: int, *, size: int = 4) -> Snapshot:
    made = manifest("j", step, Recipe.of(SPEC))
    return Snapshot(tensors={"w": np.full(size, step, np.float32)}, manifest=made)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes fails with an OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
