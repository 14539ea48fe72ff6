"""The same small world with machines that cannot call: they print, keep files, and are read by whoever comes by."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from orchestrator.ports.providers import Capabilities, Handle, SessionOutput
from orchestrator.services.context import Context
from orchestrator.services.worker_messages import ApplyResult, LogReader
from orchestrator.testing import FixedStores
from tests.helpers.world import Machines, Watch, WatchedStore, Worker, World
from worker.shared import checkpoint_file
from worker.shared.manifest import Hardware, Manifest
from worker.shared.messages import (
    Action,
    Assignment,
    Directive,
    ExportedAdapter,
    Failure,
    Finish,
    Grant,
    GrantKind,
    Message,
    MetricRow,
    Offer,
    OfferReply,
    Phase,
    Release,
    Report,
    Started,
    StartRequest,
    sign_line,
)


@dataclass
class OfflineSession:
    """What one machine has printed, written down and kept."""

    printed: list[str] = field(default_factory=list[str])
    outbox: list[str] = field(default_factory=list[str])
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    lost: bool = False


class OfflineMachines(Machines):
    """Implements `ports.SupportsLogs`, too: an output is read from its start every time."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch, Capabilities(provider="sim", shares_disk=False, same_network=False, personal=True))
        self.sessions: dict[str, OfflineSession] = {}

    def session(self, lease_id: str) -> OfflineSession:
        return self.sessions.setdefault(lease_id, OfflineSession())

    def follow(self, handle: Handle) -> Iterator[str]:
        self._reach("follow", handle)
        yield from self.session(handle.lease_id).printed

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        self._reach("collect_outputs", handle)
        session = self.session(handle.lease_id)
        return (
            SessionOutput()
            if session.lost
            else SessionOutput(messages=tuple(session.outbox), files=dict(session.files))
        )


class WatchedRemoteStore(WatchedStore):
    """A store that machines can upload to from everywhere; a folder stands in for it."""

    name = "remote"

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        return super().grant_upload(key, kind, shares_disk=True)


class OfflineWorld(World):
    """A world whose server can only listen."""

    machines: OfflineMachines

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.readers: dict[str, LogReader] = {}
        super().__init__(engine, folder)

    def make_machines(self) -> Machines:
        return OfflineMachines(self.watch)

    def make_stores(self, folder: Path, watch: Watch) -> None:
        self.store = WatchedRemoteStore(folder / "remote", watch)
        self.stores = FixedStores(WatchedStore(folder / "store", watch), self.store)

    def make_worker(self, lease: str) -> Worker:
        return OfflineWorker(self, lease)

    def start_server(self) -> Context:
        self.readers = {}
        return super().start_server()

    def listen(self, lease: str, upto: int | None = None) -> ApplyResult:
        """Read a session's output from its start up to a line, as a connection does that breaks there."""
        reader = self.readers.setdefault(lease, LogReader(ctx=self.ctx, lease_id=lease))
        return reader.read(self.machines.session(lease).printed[:upto])


class OfflineWorker(Worker):
    """What `worker.agent.session` does without a server: every call is a line, and nobody answers."""

    world: OfflineWorld

    def __init__(self, world: OfflineWorld, lease: str) -> None:
        super().__init__(world, lease)
        self.holding = False
        self.goodbye: Release | Finish | None = None
        """Its first message that ends the session: what it says afterwards need not count."""
        self.session = world.machines.session(lease)
        self.request = next(request for request in world.machines.launched if request.lease_id == lease)

    def start(self) -> Assignment:
        if self.assignment is None:
            assert self.request.server_url is None
            assert self.request.assignment is not None
            self.assignment = self.request.assignment
            self.uploads = list(self.assignment.uploads)
            self.step = self.assignment.resume_step
            self.parent = self.assignment.resume.sha256 if self.assignment.resume else None
        request = StartRequest(protocol=1, nonce=self.lease, hardware=Hardware(name="sim"))
        self._say(Started(**self._said(), request=request))
        return self.assignment

    def _say(self, message: Message) -> None:
        if isinstance(message, Release | Finish):
            self.goodbye = self.goodbye or message
        self.session.outbox.append(message.as_line())
        if isinstance(message, Report) or not self.holding:
            self.session.printed.append(sign_line(self.request.token, message.as_line()))

    def report(self) -> Directive:
        rows = (MetricRow(step=self.step, values={"loss": 1.0 / (1 + self.step)}),)
        self._say(Report(**self._said(), step=self.step, phase=Phase.TRAIN, metrics=rows))
        return Directive(action=Action.CONTINUE)

    @property
    def can_upload(self) -> bool:
        """Whether the next checkpoint goes straight to the store."""
        return not self.holding and any(g.kind is GrantKind.CHECKPOINT for g in self.uploads)

    def _place(self, kind: GrantKind) -> tuple[str, Path]:
        """Where the next file goes: through a grant, or into the folder that is handed over."""
        assert self.assignment is not None
        grant = next((g for g in self.uploads if g.kind is kind), None)
        if grant is not None and not self.holding:
            self.uploads.remove(grant)
            return grant.key, Path(grant.path or "")
        self.holding = True
        suffix = "zip" if kind is GrantKind.ADAPTER else "safetensors"
        key = f"jobs/{self.assignment.job}/f{self.assignment.fence}/{secrets.token_hex(8)}.{suffix}"
        path = self.world.folder / "kept" / key.replace("/", "__")
        self.session.files[key] = path
        return key, path

    def write(self, manifest: Manifest) -> Offer:
        key, target = self._place(GrantKind.CHECKPOINT)
        target.parent.mkdir(parents=True, exist_ok=True)
        weights = np.full(4, manifest.step, dtype=np.float32)
        sha256, size = checkpoint_file.write(target, {"adapter.w": weights}, manifest)
        return Offer(**self._said(), key=key, sha256=sha256, size=size, manifest=manifest)

    def save(self) -> OfferReply:
        offer = self.write(self.manifest())
        self._say(offer)
        self.parent = offer.sha256
        return OfferReply(committed=True)

    def release(self, reason: Any = "deadline") -> None:
        self._say(Release(**self._said(), step=self.step, reason=reason, head=self.parent))
        self.world.machines.end(self.lease)

    def fail(self, *, permanent: bool = False) -> None:
        failure = Failure(message="the disk melted", permanent=permanent)
        self._say(Finish(**self._said(), step=self.step, failure=failure, head=self.parent))
        self.world.machines.end(self.lease)

    def finish(self) -> None:
        assert self.assignment is not None
        key, path = self._place(GrantKind.ADAPTER)
        content = f"adapter of {self.assignment.job}".encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        adapter = ExportedAdapter(key=key, sha256=digest, size=len(content), adapter_sha256=digest)
        self._say(Finish(**self._said(), step=self.step, adapter=adapter, head=self.parent))
        self.world.machines.end(self.lease)
