"""Alice, who has a finished job with a real archive, and a token of the emulated hub."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.adapters import hub_push
from orchestrator.adapters.hub import Hub
from orchestrator.adapters.hub_client import own_client
from orchestrator.domain.accounts import Role
from orchestrator.domain.jobs import Job
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.pushes import Push
from orchestrator.ports.publishing import Publication, Published
from orchestrator.ports.repository import UnitOfWork
from orchestrator.ports.stores import Store
from orchestrator.services import hub_tokens, pushes
from orchestrator.services.pushes import Wish
from orchestrator.services.pushing import PushingContext, work
from tests.emulators.hub import HubEmulator
from tests.helpers.verdicts import trained
from tests.helpers.world import FakeCatalog, Watch, World
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import JobSpec

TOKEN = "hf_canary0123456789abcdef"
WEIGHTS = bytes(range(256)) * 400
FILES: Mapping[str, bytes] = {
    "adapter_model.safetensors": WEIGHTS,
    "adapter_config.json": b'{"r": 8}\n',
    "tokenizer.json": b'{"version": "1.0"}',
    "README.md": b"the card of the job's end",
}


class HubCatalog(FakeCatalog):
    """Every model exists, and the hub says what a token may write."""

    def __init__(self, hub: HubEmulator) -> None:
        self._hub = Hub(is_offline=False, endpoint=hub.endpoint)

    def refuse_without_write(self, repo: str, token: str) -> None:
        self._hub.refuse_without_write(repo, token)

    def whose(self, token: str) -> str:
        return self._hub.whose(token)


class WatchedPublisher:
    """The real way to push, in this process. It refuses to send while a transaction is open."""

    def __init__(self, watch: Watch, endpoint: str) -> None:
        self._watch, self._endpoint = watch, endpoint

    def publish(self, publication: Publication) -> Published:
        self._watch.check()
        with own_client():
            return hub_push.publish(self._endpoint, publication)


def archive(files: Mapping[str, bytes] = FILES) -> bytes:
    """The files as the zip that a worker uploads."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return packed.getvalue()


def keep_adapter(
    uow: UnitOfWork, store: Store, job_id: str, folder: Path, data: bytes | None = None, weights: bytes = WEIGHTS
) -> None:
    """Give a finished job this archive in the store, and the hashes of it and of its weights."""
    data = archive() if data is None else data
    source = folder / f"{job_id}.zip"
    source.write_bytes(data)
    key = f"jobs/{job_id}/adapter.zip"
    store.put(key, source)
    with uow() as tx:
        job = tx.jobs.get(job_id)
        assert job is not None
        job.adapter_key, job.adapter_store, job.adapter_bytes = key, store.name, len(data)
        job.adapter_zip_sha256 = hashlib.sha256(data).hexdigest()
        job.adapter_sha256 = hashlib.sha256(weights).hexdigest()
        tx.jobs.save(job)


def add_finished_job(uow: UnitOfWork, store: Store, job_id: str, folder: Path, **adapter: Any) -> None:
    """A finished job of the admin, without sessions, and its archive."""
    rows = DatasetSpec(path="rows", sha256="0" * 64, rows=8, type=RowFormat.MESSAGES, file_format=FileFormat.JSONL)
    spec = JobSpec(base_model="org/base", datasets=(rows,), max_steps=1).model_dump(mode="json")
    with uow() as tx:
        admin = next(member for member in tx.members.all() if member.role is Role.ADMIN)
        job = Job(
            id=job_id,
            member_id=admin.id,
            name=job_id,
            spec=spec,
            total_steps=1,
            priority=0,
            deadline=None,
            created_at=1_790_000_000.0,
            updated_at=1_790_000_000.0,
            state=JobState.SUCCEEDED,
        )
        tx.jobs.add(job)
    keep_adapter(uow, store, job_id, folder, **adapter)


@dataclass
class Desk:
    """Alice's pushes. `repo` is one of hers that does not exist yet."""

    world: World
    hub: HubEmulator
    context: PushingContext
    repo: str = "alice-on-the-hub/trail-guide"

    @classmethod
    def of(cls, world: World, hub: HubEmulator) -> Desk:
        hub.accounts[TOKEN] = "alice-on-the-hub"
        world.ctx = replace(world.ctx, catalog=HubCatalog(hub))
        hub_tokens.set_token(world.ctx, "alice", TOKEN)
        publisher = WatchedPublisher(world.watch, hub.endpoint)
        return cls(world, hub, PushingContext(ctx=world.ctx, publisher=publisher, folder=world.folder / "pushes"))

    def finished(self, **spec: Any) -> str:
        """A finished job with a real archive."""
        job_id = trained(self.world, **spec)
        keep_adapter(self.world.ctx.uow, self.world.store, job_id, self.world.folder)
        return job_id

    def start(self, job_id: str, *, repo: str | None = None, key: str | None = None, **how: Any) -> Push:
        wish = Wish(repo=repo or self.repo, **how)
        return pushes.start(self.world.ctx, self.world.actors["alice"], job_id, wish, key=key)

    def work(self, push: Push) -> Push:
        """Try once, at the time for it."""
        self.world.clock.tick(max(0.0, self.one(push).not_before - self.world.clock.now()))
        work(self.context, push.id)
        return self.one(push)

    def pushed(self, job_id: str, **how: Any) -> Push:
        """Start a push, and try once."""
        return self.work(self.start(job_id, **how))

    def one(self, push: Push) -> Push:
        with self.world.ctx.uow() as tx:
            found = tx.pushes.get(push.id)
        assert found is not None
        return found

    def commits(self, repo: str | None = None) -> list[str]:
        """The titles of the pushed commits, oldest first."""
        return [one.title for one in self.hub.writes.commits(repo or self.repo)]

    def files(self, repo: str | None = None) -> Mapping[str, bytes]:
        return self.hub.repos["model", repo or self.repo].files

    def job(self, job_id: str) -> Job:
        return self.world.job(job_id)

    def events(self, job_id: str) -> list[tuple[str, str]]:
        with self.world.ctx.uow() as tx:
            found = tx.events.after(0, job_id=job_id, limit=100)
        return [(event.kind, event.reason) for event in found if "push" in event.kind]

    def facts(self) -> Any:
        return json.loads(self.files()["trainhop-provenance.json"])
