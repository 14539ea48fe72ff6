"""A small world to test the promises in: real services, a real database, a real store; machines that die when told
to."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.fernet import Fernet
from sqlalchemy import Engine

from orchestrator.adapters.database.unit_of_work import make_unit_of_work
from orchestrator.adapters.stores.local import LocalStore
from orchestrator.adapters.tokens import KeyedTokens
from orchestrator.adapters.vault import FernetVault
from orchestrator.domain.accounts import Account, Actor, Member, Role
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.domain.storage import Dataset, Upload
from orchestrator.ports.catalog import BaseModel, DatasetFile, FoundModel, ModelFile
from orchestrator.ports.providers import Capabilities, LaunchRejected, LaunchRequest, ProviderUnavailable
from orchestrator.ports.repository import Transaction, UnitOfWork
from orchestrator.ports.stores import ObjectInfo, Stores, Usage
from orchestrator.ports.system import Limits
from orchestrator.providers.registry import Registry
from orchestrator.services import assignments, jobs
from orchestrator.services.context import Context
from orchestrator.services.worker_messages import Start, receive
from orchestrator.testing import FakeClock, FakeProvider, FixedStores
from orchestrator.testing.environments import store_env
from worker.shared import checkpoint_file
from worker.shared.dataset_spec import FileFormat
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Hardware, Manifest, Recipe
from worker.shared.messages import (
    Assignment,
    Directive,
    ExportedAdapter,
    Failure,
    Finish,
    Grant,
    GrantKind,
    MetricRow,
    Offer,
    OfferReply,
    Phase,
    Release,
    Report,
    StartRequest,
)

ROWS = 40


class OutsideInTransactionError(AssertionError):
    """Promise 7 was broken: something outside was called while a transaction was open."""


class Watch:
    """Wraps a unit of work and knows whether this thread is inside a transaction.

    `between` runs before each transaction and after each commit: it may raise, as if the server died there.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow, self._local = uow, threading.local()
        self.between: Callable[[], object] = _do_nothing

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Transaction]:
        self.between()
        with self._uow() as tx:
            self._local.inside = True
            try:
                yield tx
            finally:
                self._local.inside = False
        self.between()

    def check(self) -> None:
        """Raise if a transaction is open."""
        if getattr(self._local, "inside", False):
            raise OutsideInTransactionError


class WatchedStore(LocalStore):
    """The real local store; every call that touches the disk checks promise 7.

    `before[call]` runs before a call, with its arguments, `after[call]` after it: each may wait, record or raise.
    `room` is what it says of its space, if a test sets it.
    """

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(store_env(folder))
        self._watch = watch
        self.before: dict[str, Callable[..., object]] = {}
        self.after: dict[str, Callable[..., object]] = {}
        self.room: Usage | None = None

    @contextlib.contextmanager
    def _call(self, name: str, *arguments: object) -> Iterator[None]:
        self._watch.check()
        self.before.get(name, _do_nothing)(*arguments)
        yield
        self.after.get(name, _do_nothing)(*arguments)

    def stat(self, key: str) -> ObjectInfo:
        with self._call("stat", key):
            return super().stat(key)

    def usage(self) -> Usage:
        return self.room or super().usage()

    def head(self, key: str, size: int) -> bytes:
        with self._call("head", key, size):
            return super().head(key, size)

    def put(self, key: str, source: Path) -> ObjectInfo:
        with self._call("put", key, source):
            return super().put(key, source)

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        with self._call("grant_upload", key, kind):
            return super().grant_upload(key, kind, shares_disk=shares_disk)

    def keys(self, prefix: str) -> list[str]:
        with self._call("keys", prefix):
            return super().keys(prefix)

    def delete(self, key: str) -> None:
        with self._call("delete", key):
            super().delete(key)


def _do_nothing(*_: object) -> None: ...


class Machines(FakeProvider):
    """The shipped fake; every call checks promise 7, and a launch can be refused or its reply lost."""

    def __init__(self, watch: Watch, capabilities: Capabilities | None = None) -> None:
        super().__init__("sim", slots=2)
        self.capabilities = capabilities or Capabilities(provider="sim", shares_disk=True, personal=True)
        self.watch = watch
        self.rejecting = self.lose_reply = False

    def _reach(self, call: str, *arguments: object) -> None:
        self.watch.check()
        super()._reach(call, *arguments)

    @property
    def leases(self) -> list[str]:
        """The leases of all launched sessions, oldest first."""
        return [request.lease_id for request in self.launched]

    def set_reachable(self, *, reachable: bool) -> None:
        """Whether calls reach the provider."""
        self.failure = None if reachable else ProviderUnavailable("no route")

    def launch(self, request: LaunchRequest) -> str:
        self._reach("launch", request)
        if self.rejecting:
            raise LaunchRejected("not today")
        external_id = super().launch(request)
        if self.lose_reply:
            raise ProviderUnavailable("the answer was lost")
        return external_id


class FakeCatalog:
    """Implements `ports.Catalog`: every model exists, without a file of its own, and no dataset does.

    A model is of the type that its name ends with, after a slash. Those of `plain` have no chat template. It has
    `parameters`, if they are known.
    """

    parameters: int | None = None

    def model(self, name: str, token: str | None = None, *, with_modules: bool = False) -> BaseModel:
        return BaseModel(name=name, kind=name.rpartition("/")[2] if "/" in name else "", parameters=self.parameters)

    def search(self, words: str, token: str | None = None) -> Sequence[FoundModel]:
        return ()

    def has_chat_template(self, name: str, token: str | None = None) -> bool | None:
        return not name.startswith("plain/")

    def dataset(
        self, path: str, split: str, token: str | None = None, *, subset: str | None = None
    ) -> Sequence[DatasetFile]:
        raise InvalidError(f"there is no dataset {path}", [("/path", f"there is no dataset {path}")])

    def benchmark(self, repo: str, file: str, token: str | None = None) -> DatasetFile:
        raise InvalidError(f"there is no dataset {repo}", [("/benchmark", f"there is no dataset {repo}")])

    def files(self, name: str, token: str) -> Sequence[ModelFile]:
        return ()

    def refuse_without_write(self, repo: str, token: str) -> None:
        """Everybody may write everywhere."""

    def whose(self, token: str) -> str:
        raise InvalidError("this token belongs to nobody", [("/token", "this token belongs to nobody")])


class World:
    """Members alice and bob with an account each, and what they do. `store` is where checkpoints go."""

    store: WatchedStore
    stores: Stores

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.clock, self.folder, self.catalog = FakeClock(), folder, FakeCatalog()
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
        self.stores = FixedStores(self.store)

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
            catalog=self.catalog,
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
            tx.members.add(Member(id=name, name=name, role=Role.MEMBER, created_at=now))
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
            tx.accounts.add(account)
            tx.datasets.add(
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
            tx.datasets.add_upload(upload)
        source = self.folder / "rows"
        source.write_bytes(b"rows")
        self.stores.local().put(f"datasets/{self.dataset}", source)
        return Actor(member_id=name, name=name, role=Role.MEMBER)

    def set_consent(self, who: str, *, agreed: bool) -> None:
        """Whether this member lets jobs run on their account."""
        with self.ctx.uow() as tx:
            account = tx.accounts.get(f"{who}-sim")
            assert account is not None
            account.consented_at = self.clock.now() if agreed else None
            tx.accounts.save(account)

    def submit(self, who: str, steps: int = 4, **extra: Any) -> str:
        spec = JobSpec.model_validate(
            {
                "base_model": "tiny",
                "datasets": [{"path": f"sha256:{self.dataset}", "file_format": FileFormat.JSONL}],
                "max_steps": steps,
                **extra,
            }
        )
        return jobs.submit(self.ctx, self.actors[who], spec).job.id

    def job(self, job_id: str) -> Job:
        with self.ctx.uow() as tx:
            found = tx.jobs.get(job_id)
        assert found is not None
        return found

    def head(self, job_id: str) -> Checkpoint:
        """The checkpoint that the job resumes from."""
        head = self.job(job_id).head
        with self.ctx.uow() as tx:
            found = tx.checkpoints.get(job_id, head or "")
        assert found is not None
        return found

    def all_leases(self) -> list[Lease]:
        with self.ctx.uow() as tx:
            return tx.leases.live() + tx.leases.uncollected()

    def new_workers(self) -> list[Worker]:
        """One simulated worker for every launched session that has none yet."""
        known = {w.lease for w in self.workers}
        fresh = [self.make_worker(lease) for lease in self.machines.leases if lease not in known]
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
        return not self.world.machines.has_ended(self.lease)

    def send(self, message: Any) -> Any:
        """Bring a message to the server. Returns its reply."""
        return receive(self.world.ctx, message)

    def start(self) -> Assignment:
        request = StartRequest(protocol=1, nonce=self.lease, hardware=Hardware(name="sim"))
        assignment: Assignment = self.send(Start(lease=self.lease, request=request))
        self.assignment, self.step = assignment, assignment.resume_step
        self.parent = assignment.resume.sha256 if assignment.resume else None
        return assignment

    def _said(self) -> dict[str, Any]:
        assert self.assignment is not None
        self.seq += 1
        return {"lease": self.lease, "fence": self.assignment.fence, "seq": self.seq}

    def report(self) -> Directive:
        rows = (MetricRow(step=self.step, values={"loss": 1.0 / (1 + self.step)}),)
        said = Report(**self._said(), step=self.step, phase=Phase.TRAIN, metrics=rows)
        self.last = lambda: self.send(said)
        return self.send(said)

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
        (grant,) = assignments.grants(self.world.ctx, self.lease, self.assignment.fence, GrantKind.CHECKPOINT, 1)
        target = Path(grant.path or "")
        target.parent.mkdir(parents=True, exist_ok=True)
        weights = np.full(4, manifest.step, dtype=np.float32)
        sha256, size = checkpoint_file.write(target, {"adapter.w": weights}, manifest)
        return Offer(**self._said(), key=grant.key, sha256=sha256, size=size, manifest=manifest)

    def save(self) -> OfferReply:
        offer = self.write(self.manifest())
        self.last = lambda: self.send(offer)
        reply = self.send(offer)
        if reply.committed:
            self.parent = offer.sha256
        return reply

    def release(self, reason: Any = "deadline", detail: str = "", cause: str = "", *, has_remedy: bool = False) -> None:
        said = Release(**self._said(), step=self.step, reason=reason, detail=detail, cause=cause, has_remedy=has_remedy)
        self.last = lambda: self.send(said)
        self.send(said)
        self.world.machines.end(self.lease)

    def fail(self, *, permanent: bool = False) -> None:
        failure = Failure(message="the disk melted", permanent=permanent)
        said = Finish(**self._said(), step=self.step, failure=failure)
        self.last = lambda: self.send(said)
        self.send(said)
        self.world.machines.end(self.lease)

    def finish(self, content: bytes | None = None, weights: str | None = None) -> None:
        """End with an adapter: a real archive, whose weights have this sha256, or other bytes."""
        assert self.assignment is not None
        (grant,) = assignments.grants(self.world.ctx, self.lease, self.assignment.fence, GrantKind.ADAPTER, 1)
        content = content or f"adapter of {self.assignment.job}".encode()
        Path(grant.path or "").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        adapter = ExportedAdapter(key=grant.key, sha256=digest, size=len(content), adapter_sha256=weights or digest)
        said = Finish(**self._said(), step=self.step, adapter=adapter)
        self.last = lambda: self.send(said)
        self.send(said)
        self.world.machines.end(self.lease)


def fresh_folder(base: Path, name: str) -> Path:
    """An empty folder, also on the second run of the same example."""
    folder = base / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
