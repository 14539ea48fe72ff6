"""Tests what happens to checkpoints in a Google Drive that fails.

    python -m benchmarks.store_faults --uploads 10000 --json

N checkpoints are written, uploaded through grants and offered to the product's own `services.checkpoints.offer`, with a
real database (SQLite) and the Drive emulator in its own process. A third of all its replies (31 %) are errors, 13 % of
which hide a success. 2 % of the connections are cut in the middle of a body. 1 % of the uploads are stored truncated
and 1 % with a flipped bit. One in ten new files gets a twin with the same name, and searches by name lag. Half of the
jobs keep every checkpoint and half keep two, so that deletion is tested as well. Pauses between attempts are left out,
because they would only take time.

The audit trusts neither the server nor the emulator's API. It reads the emulated Drive's files and journal and the
server's database from disk. It counts

uploads             checkpoints to be committed (N)
torn                committed checkpoints whose file differs from what was written, checked right after the commit
                    and at the end if the checkpoint is kept
lost                of the N, those that are neither committed nor pruned in the database at the end, and committed
                    ones without a file
duplicates          files beyond the first for one key (its private property), and folders beyond the first of one
                    name in one place, without planted twins
orphans_referenced  committed checkpoints that point to a file that is not theirs: none, a planted twin, one of
                    another key, or one in the trash
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import stamina
from stamina.instrumentation import set_on_retry_hooks

from benchmarks.bench_server import Coroutines
from benchmarks.tiny_job import say, write_rows
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account, Actor
from orchestrator.domain.errors import UnavailableError
from orchestrator.ports.providers import Capabilities, Capacity
from orchestrator.providers.registry import Registry
from orchestrator.services import assignments, datasets, jobs
from orchestrator.services.context import Context
from orchestrator.services.dispatch import dispatch
from orchestrator.services.stores import use_store
from orchestrator.services.worker_messages import Start, receive
from worker.agent import transfers
from worker.agent.uplink import ServerAway
from worker.shared import checkpoint_file
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Hardware, Manifest, Recipe
from worker.shared.messages import Assignment, Grant, GrantKind, Offer, StartRequest
from worker.shared.process import tied
from worker.shared.resumable_upload import Patience

CHAOS = {
    "seed": 2510,
    "errors": 0.31,
    "done": 0.13,
    "cuts": 0.02,
    "truncations": 0.01,
    "flips": 0.01,
    "twins": 0.1,
    "lag": 3,
}
STEPS = 100
THREADS = 8
TRIES = 50
PROPERTY = "trainhop"
DRIVE, DATABASE = Path("drive"), Path("server/trainhop.db")


def main() -> int:
    """Commit, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-faults-") as temporary:
        counts = run(Path(temporary), options.uploads)
    print(json.dumps(counts) if options.json else json.dumps(counts, indent=2))
    return 0 if not any(count for name, count in counts.items() if name != "uploads") else 1


def run(folder: Path, uploads: int) -> dict[str, int]:
    """The counts for this many checkpoints."""
    return audit(folder / DRIVE, folder / DATABASE, commit(folder, uploads))


def commit(folder: Path, uploads: int, per_job: int = STEPS) -> Done:
    """Commit this many checkpoints, `per_job` in each job.

    It leaves the emulated Drive and the server's database under `folder`.
    """
    drive = folder / DRIVE
    with _emulator(drive) as url:
        settings = Settings(data_dir=folder / "server", drivers={"drive": {"endpoint": url}}, offline=True)
        app = build(settings, providers=Registry.of({"local": _Nowhere()}))
        try:
            app.context = dataclasses.replace(app.context, spawn=lambda work: work())
            use_store(app.context, "drive", (drive / "authorized_user.json").read_text())
            httpx.post(f"{url}/_chaos", json=CHAOS, trust_env=False).raise_for_status()
            return _commit_all(app, drive, folder, uploads, per_job)
        finally:
            app.close()


class _emulator:  # noqa: N801  used as a function
    """`python -m tests.emulators.drive` in its own process. Yields its address."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        command = [sys.executable, "-m", "tests.emulators.drive", "--data-dir", str(folder)]
        self._process = subprocess.Popen(tied(command), stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()[-1]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()


class _Nowhere(Coroutines):
    """Accepts every launch and does nothing. Its machines share no disk."""

    capabilities = Capabilities(provider="local", shares_disk=False, this_computer=True)

    def __init__(self) -> None:
        self.launched: list[str] = []

    def capacity(self, account: Account) -> Capacity:
        return Capacity(slots=1_000_000, session_s=36_000.0)

    def launch(self, request: Any) -> str:
        self.launched.append(request.lease_id)
        return request.lease_id


@dataclass
class Done:
    """What was written and what the server replied. Shared by all threads."""

    wanted: int
    written: dict[str, str] = field(default_factory=dict[str, str])
    torn: set[str] = field(default_factory=set[str])
    events: Counter[str] = field(default_factory=Counter[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.events[what] += 1


# --- committing ------------------------------------------------------------------------------------------


def _commit_all(app: App, drive: Path, folder: Path, uploads: int, per_job: int) -> Done:
    done, began = Done(uploads), time.monotonic()
    machines = app.context.providers.get("local")
    assert isinstance(machines, _Nowhere)
    steps = [per_job] * (uploads // per_job) + ([uploads % per_job] if uploads % per_job else [])
    _submit(app.context, folder, len(steps))
    while dispatch(app.context):
        pass
    set_on_retry_hooks([])
    with stamina.set_testing(True, attempts=8, cap=True), ThreadPoolExecutor(THREADS) as pool:
        work = [
            pool.submit(_Session(app.context, drive, folder, lease, done).commit, count)
            for lease, count in zip(machines.launched, steps, strict=True)
        ]
        for number, each in enumerate(work, 1):
            each.result()
            if number % 10 == 0:
                say(f"{len(done.written)} of {uploads} after {time.monotonic() - began:.0f} s {dict(done.events)}")
    say(f"{uploads} uploads in {time.monotonic() - began:.0f} s: {dict(done.events)}")
    return done


def _submit(ctx: Context, folder: Path, count: int) -> None:
    with ctx.uow() as tx:
        admin = tx.members.all()[0]
    rows = datasets.add_dataset(ctx, admin.id, write_rows(folder / "rows.jsonl"), "rows.jsonl")
    for number in range(count):
        spec = JobSpec.model_validate(
            {
                "name": f"job {number}",
                "base_model": "org/tiny",
                "datasets": [{"path": f"sha256:{rows.sha256}"}],
                "max_steps": STEPS,
                "checkpoint": {"keep": 100 if number % 2 else 2},
            }
        )
        jobs.submit(ctx, Actor(member_id=admin.id, name=admin.name, role=admin.role), spec)


class _Session:
    """A worker's part of a lease, without the training."""

    def __init__(self, ctx: Context, drive: Path, folder: Path, lease: str, done: Done) -> None:
        self._ctx, self._drive, self._lease, self._done = ctx, drive, lease, done
        self._file = folder / f"{lease}.safetensors"
        self._patience = Patience(sleep=lambda _: None)
        self._seq = itertools.count(1)
        self._parent: str | None = None
        self._fence = 0
        self._grants: list[Grant] = []

    def commit(self, count: int) -> None:
        """Checkpoints of steps 1 to `count`, each a child of the one before."""
        request = StartRequest(protocol=1, nonce=self._lease, hardware=Hardware(name="bench"))
        assignment: Assignment = self._insist(lambda: receive(self._ctx, Start(lease=self._lease, request=request)))
        self._fence = assignment.fence
        self._grants = [g for g in assignment.uploads if g.kind is GrantKind.CHECKPOINT]
        for step in range(1, count + 1):
            self._save(assignment, step)

    def _insist(self, call: Any) -> Any:
        """Retry as a worker does when the store does not respond."""
        for _ in range(TRIES):
            try:
                return call()
            except (UnavailableError, ServerAway) as error:
                self._done.count(type(error).__name__)
        raise RuntimeError(f"{self._lease} got nowhere in {TRIES} attempts")

    def _save(self, assignment: Assignment, step: int) -> None:
        manifest = Manifest(
            job=assignment.job,
            fence=assignment.fence,
            step=step,
            parent=self._parent,
            recipe=Recipe.of(assignment.spec),
            epoch=0,
            index=step,
            samples_seen=step,
            wall_seconds=0.0,
            backend="bench",
            precision="fp32",
            micro_batch_size=1,
            hardware=Hardware(),
            versions={},
            state={},
        )
        tensors = {"w": np.frombuffer(secrets.token_bytes(4096), np.float32)}
        sha256, size = checkpoint_file.write(self._file, tensors, manifest)
        grant = self._insist(self._upload)
        offer = Offer(
            lease=self._lease,
            fence=assignment.fence,
            seq=next(self._seq),
            key=grant.key,
            sha256=sha256,
            size=size,
            manifest=manifest,
        )
        reply = self._insist(lambda: receive(self._ctx, offer))
        if not reply.committed:
            raise RuntimeError(f"refused: {reply.refusal}")
        self._parent = sha256
        self._look(grant.key, sha256)

    def _upload(self) -> Grant:
        if not self._grants:
            self._grants = assignments.grants(self._ctx, self._lease, self._fence, GrantKind.CHECKPOINT, 4)
        grant = self._grants[0]
        try:
            transfers.upload(grant, self._file, self._patience)
        except transfers.UnusableGrant:
            self._grants.pop(0)
            raise
        return self._grants.pop(0)

    def _look(self, key: str, sha256: str) -> None:
        """Compare the emulated Drive's own file with what was written, right after the commit."""
        with self._ctx.uow() as tx:
            ident = tx.store_objects.get("drive", key)
        hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (self._drive / "blobs" / str(ident)).glob("*")]
        with self._done.lock:
            self._done.written[sha256] = key
            if hashes != [sha256]:
                self._done.torn.add(sha256)


# --- the audit -------------------------------------------------------------------------------------------


def audit(drive: Path, database: Path, done: Done) -> dict[str, int]:
    """The counts of the module docstring, from the two disks."""
    files = _files(drive / "journal.jsonl")
    with sqlite3.connect(database) as connection:
        states = dict(connection.execute("SELECT sha256, state FROM checkpoints"))
        kept = connection.execute(
            "SELECT c.sha256, c.key, o.external_id FROM checkpoints c LEFT JOIN store_objects o "
            "ON o.store = c.store AND o.key = c.key WHERE c.state = 'committed'"
        ).fetchall()
    connection.close()
    torn, missing, strayed = set(done.torn), 0, 0
    for sha256, key, ident in kept:
        file = files.get(ident or "")
        missing += file is None
        strayed += file is None or file["planted"] or file["trashed"] or _key(file) != key
        if file is not None and _sha256(drive / "blobs" / file["id"] / file["revision"]) != sha256:
            torn.add(sha256)
    settled = sum(states.get(sha256) in ("committed", "pruned") for sha256 in done.written)
    return {
        "uploads": done.wanted,
        "torn": len(torn),
        "lost": done.wanted - settled + missing,
        "duplicates": _duplicates(list(files.values())),
        "orphans_referenced": strayed,
    }


def _files(journal: Path) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        if "file" in entry:
            files[entry["file"]["id"]] = entry["file"]
        elif "gone" in entry:
            files.pop(entry["gone"], None)
    return files


def _key(file: dict[str, Any]) -> str | None:
    return next((p["value"] for p in file["properties"] if p["key"] == PROPERTY), None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _duplicates(files: list[dict[str, Any]]) -> int:
    own = [f for f in files if not f["planted"]]
    keys = Counter(_key(f) for f in own if _key(f) is not None)
    folders = Counter((tuple(f["parents"]), f["title"]) for f in own if f["mime"].endswith(".folder"))
    return sum(n - 1 for n in (*keys.values(), *folders.values()))


if __name__ == "__main__":
    sys.exit(main())
