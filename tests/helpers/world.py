"""A small world to test the promises in: real services, a real database, a real store; machines that die when told to."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.fernet import Fernet
from sqlalchemy import Engine

from orchestrator.adapters.database.unit_of_work import make_unit_of_work
from orchestrator.adapters.stores.local import LocalStore
from orchestrator.adapters.tokens import KeyedTokens
from orchestrator.adapters.vault import FernetVault
from orchestrator.domain.model import Account, Checkpoint, Job, Lease, Member, Role
from orchestrator.ports.providers import (
    BaseModel,
    Capabilities,
    Capacity,
    Context,
    DatasetFile,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Leftovers,
    Limits,
    Liveness,
    ModelFile,
    Observation,
    ProviderUnavailable,
    Stores,
)
from orchestrator.ports.repository import Dataset, Transaction, UnitOfWork, Upload
from orchestrator.providers.registry import Registry
from orchestrator.services import checkpoints, jobs, leases
from orchestrator.services.jobs import Actor
from orchestrator.testing import OneStore
from worker.shared import checkpoint_file
from worker.shared.messages import (
    Assignment,
    Directive,
    ExportedAdapter,
    Failure,
    FileFormat,
    Finish,
    Grant,
    GrantKind,
    Hardware,
    JobSpec,
    Manifest,
    MetricRow,
    Offer,
    OfferReply,
    Phase,
    Recipe,
    Release,
    Report,
    StartRequest,
)

ROWS = 40


class Clock:
    """A clock that stands still unless told."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time


class OutsideInTransactionError(AssertionError):
    """Promise 7 was broken: something outside was called while a transaction was open."""


class Watch:
    """Wraps a unit of work and knows whether this thread is inside a transaction."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow, self._local = uow, threading.local()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Transaction]:
        with self._uow() as tx:
            self._local.inside = True
            try:
                yield tx
            finally:
                self._local.inside = False

    def check(self) -> None:
        """Raise if a transaction is open."""
        if getattr(self._local, "inside", False):
            raise OutsideInTransactionError


class WatchedStore(LocalStore):
    """The real local store; every call that touches the disk checks promise 7, and it can be told to be full."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(folder, lambda key: f"http://127.0.0.1/{key}", b"key")
        self._watch = watch

    def stat(self, key: str) -> Any:
        self._watch.check()
        return super().stat(key)

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        self._watch.check()
        return super().grant_upload(key, kind, shares_disk=shares_disk)

    def keys(self, prefix: str) -> list[str]:
        self._watch.check()
        return super().keys(prefix)

    def delete(self, key: str) -> None:
        self._watch.check()
        super().delete(key)


@dataclass
class Machines:
    """A provider whose sessions live until the test ends them."""

    watch: Watch
    slots: int = 2
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(provider="sim", shares_disk=True, personal=True)
    )
    launched: dict[str, LaunchRequest] = field(default_factory=dict[str, LaunchRequest])
    dead: set[str] = field(default_factory=set[str])
    failed: set[str] = field(default_factory=set[str])
    reachable: bool = True
    rejecting: bool = False
    lose_reply: bool = False
    any_folder: bool = True

    def _contact(self) -> None:
        self.watch.check()
        if not self.reachable:
            raise ProviderUnavailable("no route")

    def room(self, account: Account) -> Capacity:
        self._contact()
        return Capacity(slots=self.slots, session_s=3600.0, start_up_s=1.0, any_folder=self.any_folder)

    def launch(self, request: LaunchRequest) -> str:
        self._contact()
        if self.rejecting:
            raise LaunchRejected("not today")
        self.launched.setdefault(request.lease_id, request)
        if self.lose_reply:
            raise ProviderUnavailable("the answer was lost")
        return f"ext-{request.lease_id}"

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        self._contact()
        return [
            Observation(lease_id=x, liveness=self._liveness(x), failed=x in self.failed)
            for x in (h.lease_id for h in handles)
        ]

    def _liveness(self, lease_id: str) -> Liveness:
        alive = lease_id in self.launched and lease_id not in self.dead
        return Liveness.RUNNING if alive else Liveness.ENDED

    def stop(self, handle: Handle) -> None:
        self._contact()
        self.dead.add(handle.lease_id)

    def collect(self, handle: Handle) -> Leftovers:
        self._contact()
        return Leftovers()

    def forget(self, handle: Handle) -> None:
        self._contact()

    def erase(self, handle: Handle) -> None:
        self._contact()

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        return None


class AnyModel:
    """A catalog that knows every model and no file."""

    def model(self, name: str, token: str | None = None) -> BaseModel:
        return BaseModel(name=name)

    def dataset(self, path: str, split: str, token: str | None = None) -> DatasetFile:
        raise AssertionError(path)

    def files(self, name: str, token: str) -> Sequence[ModelFile]:
        return ()

    def whose(self, token: str) -> str:
        raise AssertionError


class World:
    """Members alice and bob with an account each, and what they do. `store` is where checkpoints go."""

    store: WatchedStore
    stores: Stores

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.clock, self.folder = Clock(), folder
        self.watch = Watch(make_unit_of_work(engine))
        self.machines = self.make_machines()
        self.make_stores(folder, self.watch)
        self.dataset = hashlib.sha256(b"rows").hexdigest()
        self.ctx = self.start_server()
        self.actors = {name: self._member(name) for name in ("alice", "bob")}
        self.workers: list[Worker] = []

    def make_machines(self) -> Machines:
        """The machines of this world."""
        return Machines(self.watch)

    def make_stores(self, folder: Path, watch: Watch) -> None:
        """Where everything lies."""
        self.store = WatchedStore(folder / "store", watch)
        self.stores = OneStore(self.store)

    def make_worker(self, lease: str) -> Worker:
        """What runs on one of them."""
        return Worker(self, lease)

    def start_server(self) -> Context:
        """A new server process over the same database: nothing in memory survives."""
        self.ctx = Context(
            uow=self.watch,
            clock=self.clock,
            providers=Registry.of({"sim": self.machines}),
            stores=self.stores,
            catalog=AnyModel(),
            tokens=KeyedTokens(b"k" * 32),
            limits=Limits(patience_s=60.0),
            vault=FernetVault(Fernet.generate_key().decode()),
            server_url=lambda: "http://127.0.0.1:1",
            public_url=None,
            wake=lambda: None,
            spawn=lambda work: work(),
            started_at=self.clock.now(),
        )
        return self.ctx

    def _member(self, name: str) -> Actor:
        now = self.clock.now()
        with self.ctx.uow() as tx:
            tx.add_member(Member(id=name, name=name, role=Role.MEMBER, created_at=now))
            account = Account(
                id=f"{name}-sim",
                provider="sim",
                member_id=name,
                name=f"{name}'s",
                config={},
                credentials="sealed",
                consented_at=now,
                created_at=now,
            )
            tx.add_account(account)
            tx.add_dataset(
                Dataset(
                    sha256=self.dataset,
                    size=4,
                    file_format="jsonl",
                    row_format="messages",
                    rows=ROWS,
                    name="rows",
                    member_id=name,
                    created_at=now,
                    key=f"datasets/{self.dataset}",
                )
            )
            upload = Upload(id=f"upload-{name}", sha256=self.dataset, member_id=name, name="rows", created_at=now)
            tx.add_upload(upload)
        source = self.folder / "rows"
        source.write_bytes(b"rows")
        self.stores.local().put(f"datasets/{self.dataset}", source)
        return Actor(member_id=name, name=name, role=Role.MEMBER)

    def set_consent(self, who: str, *, agreed: bool) -> None:
        """Whether this member lets jobs run on their account."""
        with self.ctx.uow() as tx:
            account = tx.account(f"{who}-sim")
            assert account is not None
            account.consented_at = self.clock.now() if agreed else None
            tx.save_account(account)

    def submit(self, who: str, steps: int = 4, **extra: Any) -> str:
        spec = JobSpec.model_validate(
            {
                "base_model": "tiny",
                "datasets": [{"path": f"sha256:{self.dataset}", "file_format": FileFormat.JSONL}],
                "max_steps": steps,
                **extra,
            }
        )
        return jobs.submit(self.ctx, self.actors[who], spec).id

    def job(self, job_id: str) -> Job:
        with self.ctx.uow() as tx:
            found = tx.job(job_id)
        assert found is not None
        return found

    def head(self, job_id: str) -> Checkpoint:
        """The checkpoint from which the job goes on."""
        head = self.job(job_id).head
        with self.ctx.uow() as tx:
            found = tx.checkpoint(job_id, head or "")
        assert found is not None
        return found

    def all_leases(self) -> list[Lease]:
        with self.ctx.uow() as tx:
            return tx.live_leases() + tx.uncollected_leases()

    def new_workers(self) -> list[Worker]:
        """One simulated worker for every launched session that has none yet."""
        known = {w.lease for w in self.workers}
        fresh = [self.make_worker(lease) for lease in self.machines.launched if lease not in known]
        self.workers += fresh
        return fresh


class Worker:
    """What `worker.agent.session` does, one call at a time, so that it can be stopped anywhere."""

    def __init__(self, world: World, lease: str) -> None:
        self.world, self.lease = world, lease
        self.assignment: Assignment | None = None
        self.step = self.seq = 0
        self.parent: str | None = None
        self.last: Callable[[], object] = lambda: None

    @property
    def is_alive(self) -> bool:
        return self.lease not in self.world.machines.dead

    def start(self) -> Assignment:
        request = StartRequest(protocol=1, nonce=self.lease, hardware=Hardware(name="sim"))
        self.assignment = leases.start(self.world.ctx, self.lease, request)
        self.step = self.assignment.resume_step
        self.parent = self.assignment.resume.sha256 if self.assignment.resume else None
        return self.assignment

    def _said(self) -> dict[str, Any]:
        assert self.assignment is not None
        self.seq += 1
        return {"lease": self.lease, "fence": self.assignment.fence, "seq": self.seq}

    def report(self) -> Directive:
        rows = (MetricRow(step=self.step, values={"loss": 1.0 / (1 + self.step)}),)
        said = Report(**self._said(), step=self.step, phase=Phase.TRAIN, metrics=rows)
        self.last = lambda: leases.report(self.world.ctx, said)
        return leases.report(self.world.ctx, said)

    def manifest(self, **changes: Any) -> Manifest:
        assert self.assignment is not None
        facts: dict[str, Any] = {
            "job": self.assignment.job,
            "fence": self.assignment.fence,
            "step": self.step,
            "parent": self.parent,
            "recipe": Recipe.of(self.assignment.spec),
            "epoch": 0,
            "index": self.step,
            "samples_seen": self.step * 8,
            "wall_seconds": 1.0,
            "backend": "sim",
            "precision": "fp32",
            "micro_batch_size": 1,
            "hardware": Hardware(),
            "versions": {},
            "state": {},
        }
        return Manifest(**(facts | changes))

    def write(self, manifest: Manifest) -> Offer:
        """Write a real checkpoint file where the grant says."""
        assert self.assignment is not None
        (grant,) = leases.grants(self.world.ctx, self.lease, self.assignment.fence, GrantKind.CHECKPOINT, 1)
        target = Path(grant.path or "")
        target.parent.mkdir(parents=True, exist_ok=True)
        weights = np.full(4, manifest.step, dtype=np.float32)
        sha256, size = checkpoint_file.write(target, {"adapter.w": weights}, manifest)
        return Offer(**self._said(), key=grant.key, sha256=sha256, size=size, manifest=manifest)

    def save(self) -> OfferReply:
        offer = self.write(self.manifest())
        self.last = lambda: checkpoints.offer(self.world.ctx, offer)
        reply = checkpoints.offer(self.world.ctx, offer)
        if reply.committed:
            self.parent = offer.sha256
        return reply

    def release(self, reason: Any = "deadline", detail: str = "", cause: str = "") -> None:
        said = Release(**self._said(), step=self.step, reason=reason, detail=detail, cause=cause)
        self.last = lambda: leases.release(self.world.ctx, said)
        leases.release(self.world.ctx, said)
        self.world.machines.dead.add(self.lease)

    def fail(self, *, permanent: bool = False) -> None:
        failure = Failure(message="the disk melted", permanent=permanent)
        said = Finish(**self._said(), step=self.step, failure=failure)
        self.last = lambda: leases.finish(self.world.ctx, said)
        leases.finish(self.world.ctx, said)
        self.world.machines.dead.add(self.lease)

    def finish(self) -> None:
        assert self.assignment is not None
        (grant,) = leases.grants(self.world.ctx, self.lease, self.assignment.fence, GrantKind.ADAPTER, 1)
        content = f"adapter of {self.assignment.job}".encode()
        Path(grant.path or "").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        adapter = ExportedAdapter(key=grant.key, sha256=digest, size=len(content), adapter_sha256=digest)
        said = Finish(**self._said(), step=self.step, adapter=adapter)
        self.last = lambda: leases.finish(self.world.ctx, said)
        leases.finish(self.world.ctx, said)
        self.world.machines.dead.add(self.lease)


def fresh_folder(base: Path, name: str) -> Path:
    """An empty folder, also on the second run of the same example."""
    folder = base / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
