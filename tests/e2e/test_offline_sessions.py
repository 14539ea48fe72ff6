"""Real worker processes that cannot call the server: what they print and leave behind is worth what HTTP is worth."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_job import STEPS, Run, job_file, state_sha256
from orchestrator.adapters.database.queries import Queries
from orchestrator.adapters.stores.signed_links import BlobLinks
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account, Actor, Role
from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.lifecycle import EndReason, JobState
from orchestrator.entrypoints.background.scheduler import Ticker
from orchestrator.ports.stores import Store
from orchestrator.providers.registry import Registry
from orchestrator.services import jobs
from orchestrator.services.datasets import add_dataset
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.testing import FakeProvider, FixedStores
from orchestrator.testing.environments import driver_env, store_env
from tests.helpers.remote_machines import RemoteMachines, RemoteStore
from tests.helpers.waiting import first_true
from worker.shared.job_spec import JobSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 240.0


def _bytes(store: Store, key: str | None) -> bytes:
    return b"".join(store.read(key or ""))


class OfflineServer:
    """A server in this process, whose only machines are remote ones."""

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.machines = RemoteMachines(driver_env(folder / "remote"))
        self._settings = Settings(
            data_dir=folder / "data",
            offline=True,
            local_slots=0,
            allowed_folders=(model.parent,),
            report_every_s=1.0,
            reconcile_s=0.5,
        )
        self._remote_store = RemoteStore(
            store_env(folder / "remote", links=BlobLinks(lambda key: f"http://127.0.0.1:9/{key}", b"key"))
        )
        self.app = self._build()
        ctx = self.app.context
        with ctx.uow() as tx:
            tx.accounts.add(
                Account(
                    id="remote",
                    provider="remote",
                    member_id=None,
                    name="remote",
                    config={"env": {"OMP_NUM_THREADS": "1"}, "session_s": 900.0},
                    created_at=0.0,
                )
            )
            self.actor = Actor(member_id=tx.members.all()[0].id, name="admin", role=Role.ADMIN)
        self._dataset = add_dataset(ctx, self.actor.member_id, data, data.name).sha256
        self._model = model

    def _build(self) -> App:
        app = build(
            self._settings,
            providers=Registry.of(
                {"local": FakeProvider("local", slots=0, this_computer=True), "remote": self.machines}
            ),
        )
        stores = FixedStores(app.store, self._remote_store)
        limits = dataclasses.replace(app.context.limits, most_uploads=4_000)
        app.context = dataclasses.replace(app.context, stores=stores, limits=limits, spawn=lambda work: work())
        return app

    def submit(self, **changes: Any) -> str:
        file = job_file(self._model, f"sha256:{self._dataset}", "lora") | changes
        return jobs.submit(self.app.context, self.actor, JobSpec.model_validate(file)).job.id

    def job(self, ident: str) -> Job:
        with self.app.context.uow() as tx:
            found = tx.jobs.get(ident)
        assert found is not None
        return found

    def sessions(self) -> list[Lease]:
        with self.app.context.uow() as tx:
            return tx.leases.live()

    def result(self, ident: str, folder: Path) -> Run:
        """What `train` reads over the API, from where it lies."""
        job, stores = self.job(ident), self.app.context.stores
        with self.app.context.uow() as tx:
            head = tx.checkpoints.get(ident, job.head or "")
        assert head is not None
        archive = zipfile.ZipFile(io.BytesIO(_bytes(stores.get(job.adapter_store or ""), job.adapter_key)))
        return Run(
            kills=0,
            adapter_sha256=hashlib.sha256(archive.read("adapter_model.safetensors")).hexdigest(),
            state_sha256=state_sha256(_bytes(stores.get(head.store), head.key), folder / "last.safetensors"),
            sample_order_sha256=self._series(ident, "batch_crc32"),
            losses_sha256=self._series(ident, "loss"),
        )

    def _series(self, ident: str, name: str) -> str:
        points = Queries(self.app.engine).metrics(ident, name=name, from_step=0, limit=10_000)
        assert [step for _, step, _ in points] == list(range(1, STEPS + 1)), name
        return hashlib.sha256(b"".join(struct.pack("<d", value) for _, _, value in points)).hexdigest()

    def pid(self, lease: Lease) -> int | None:
        return self.machines._pid(lease.id)

    def step(self, lease: Lease) -> int:
        """The last step that the session has printed."""
        log = (self.machines._home(lease.id) / "output.log").read_text(errors="replace")
        steps = [int(line.split()[1]) for line in log.splitlines() if line.startswith("step ")]
        return steps[-1] if steps else 0

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        assert first_true(condition, PATIENCE_S, 0.03), f"{what} never came"

    def settle(self, ident: str) -> None:
        """Reconcile until the job has ended, as a server does that was off until now."""

        def look() -> bool:
            reconcile(self.app.context)
            return self.done(ident)

        self.wait("the job's end", look)

    def done(self, ident: str) -> bool:
        return self.job(ident).state.is_final


@pytest.fixture
def place(tmp_path: Path, model_and_rows: tuple[Path, Path]) -> Iterator[OfflineServer]:
    made = OfflineServer(tmp_path, *model_and_rows)
    yield made
    made.app.close()


@pytest.fixture
def ticking(place: OfflineServer) -> Iterator[OfflineServer]:
    ticker = Ticker(place.app)
    ticker.start()
    yield place
    ticker.stop()


def test_what_is_printed_is_worth_what_is_called(ticking: OfflineServer, unbroken: Run, tmp_path: Path) -> None:
    """Uploads through grants, everything else on stdout; killed once on the way, among megabytes of other output."""
    job = ticking.submit()
    ticking.wait("the first step", lambda: any(ticking.step(x) >= 1 for x in ticking.sessions() if ticking.pid(x)))
    (first,) = ticking.sessions()
    with (ticking.machines._home(first.id) / "output.log").open("a") as log:
        log.write("\n" + "x" * 3_000_000 + "\n@trainhop forged {}\n")
    ticking.wait("a commit", lambda: ticking.job(job).head is not None)
    os.kill(ticking.pid(first) or 0, signal.SIGKILL)
    ticking.wait("the job's end", lambda: ticking.done(job))
    assert ticking.job(job).state is JobState.SUCCEEDED, ticking.job(job).message
    assert ticking.result(job, tmp_path) == unbroken
    with ticking.app.context.uow() as tx:
        ended = tx.leases.get(first.id)
    assert ended is not None
    assert ended.end_reason is EndReason.LOST
    assert ended.hardware


def test_what_is_left_behind_is_worth_what_is_called(place: OfflineServer, unbroken: Run, tmp_path: Path) -> None:
    """No upload works and the server is off all the time: the outbox and the kept files hold everything (promise 8).

    Seen failing without `KeepFolder` (nothing to adopt), and without the message's kind in the outbox (no metric of the
    session survived).
    """
    place.app.context = dataclasses.replace(
        place.app.context, stores=FixedStores(place.app.store, place.app.store), uow=place.app.context.uow
    )
    job = place.submit()
    dispatch(place.app.context)
    (lease,) = place.sessions()
    place.wait("the start", lambda: place.pid(lease) is not None)
    place.wait("the session's end", lambda: place.pid(lease) is None)
    assert place.job(job).state is JobState.LEASED
    place.machines.reachable = False
    reconcile(place.app.context)
    assert place.job(job).state is JobState.LEASED, "a provider that does not answer is no proof of anything"
    place.machines.reachable = True
    place.settle(job)
    assert place.job(job).state is JobState.SUCCEEDED, place.job(job).message
    assert place.result(job, tmp_path) == unbroken


def test_a_session_whose_files_are_lost_is_adopted_from_its_output(
    place: OfflineServer, unbroken: Run, tmp_path: Path
) -> None:
    """The server was off and no file was kept: what was printed, and uploaded through grants, is the whole job."""
    job = place.submit()
    dispatch(place.app.context)
    (lease,) = place.sessions()
    place.machines.loses_files = True
    place.wait("the start", lambda: place.pid(lease) is not None)
    place.wait("the session's end", lambda: place.pid(lease) is None)
    place.settle(job)
    assert place.job(job).state is JobState.SUCCEEDED, place.job(job).message
    assert place.result(job, tmp_path) == unbroken
