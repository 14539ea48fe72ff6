"""Backs up a server under load again and again, restores each backup elsewhere, and looks for what was acknowledged.

The load: jobs are submitted, trained and finished over HTTP, with a checkpoint and an adapter each. Members and data
files are added, and every second data file is deleted again. So files of the store come and go during each backup.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.lab import Lab
from benchmarks.load import Connection
from benchmarks.over_http import BenchServer, upload, whole_job
from benchmarks.report import Figure
from benchmarks.tiny_job import say
from orchestrator.adapters.backups import back_up, restore
from orchestrator.adapters.instance import Origin
from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.domain.errors import TrainhopError

BACKUPS = int(os.environ.get("BENCH_BACKUPS", "100"))
PER_SERVER = 20
"""A new server then, so that a backup stays small and the comparison quick."""
WORKERS, PAUSE_S = 4, 0.02
WRITES_BETWEEN = 30
"""At least so many writes are acknowledged between two backups."""


@dataclass
class Acknowledged:
    """What the server has acknowledged: members and jobs by id, finished jobs, and data files by hash."""

    rows: set[str] = field(default_factory=set[str])
    finished: set[str] = field(default_factory=set[str])
    files: set[str] = field(default_factory=set[str])

    def copy(self) -> Acknowledged:
        return Acknowledged(set(self.rows), set(self.finished), set(self.files))

    def __len__(self) -> int:
        return len(self.rows) + len(self.finished) + len(self.files)


@dataclass
class Outcome:
    """What was tried, and what was wrong."""

    backups: int = 0
    acknowledged: int = 0
    missing: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])
    bad_starts: list[str] = field(default_factory=list[str])


def backup(folder: Path) -> Iterator[Figure]:
    """Figures of `BACKUPS` backups."""
    outcome, number = Outcome(), 0
    while outcome.backups < BACKUPS:
        number += 1
        _of_one_server(folder / f"server-{number}", min(PER_SERVER, BACKUPS - outcome.backups), outcome)
        say(f"  {outcome.backups} backups, {outcome.acknowledged} acknowledged writes")
    yield Figure(
        name="backups of a server under load, restored elsewhere",
        value=outcome.backups,
        bar=">= 100",
        ok=outcome.backups >= 100,
    )
    compared = outcome.acknowledged
    yield Figure(name="acknowledged writes looked for", value=compared, bar="> 0", ok=compared > 0)
    for name, found in (
        ("acknowledged before the backup and missing", outcome.missing),
        ("files that a restored database names and that are missing or changed", outcome.broken),
        ("restored servers that did not start", outcome.bad_starts),
    ):
        yield Figure(name=name, value=found[:3] or 0, bar="0", ok=not found)


def _of_one_server(folder: Path, wanted: int, outcome: Outcome) -> None:
    folder.mkdir(parents=True)
    server, known, stopping = BenchServer(folder / "bench"), Acknowledged(), threading.Event()
    threads = [
        threading.Thread(target=lambda: asyncio.run(_train(server, known, stopping))),
        threading.Thread(target=_write, args=(server, known, stopping)),
    ]
    for thread in threads:
        thread.start()
    data, file = server.folder / "data", folder / "backup.tar"
    settings = Settings(data_dir=data)
    try:
        for number in range(wanted):
            Lab.wait_for(lambda: len(known) >= (number + 1) * WRITES_BETWEEN, "the load")  # noqa: B023  called here
            before = known.copy()
            back_up(data, settings.url, file)
            copy = folder / f"copy-{number}"
            restore(file, copy, Settings(data_dir=copy).url)
            _compare(copy, before, outcome)
            if number < wanted - 1:
                shutil.rmtree(copy)
            outcome.backups += 1
            outcome.acknowledged += len(before)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        server.stop()
    try:
        build(Settings(data_dir=copy, offline=True), origin=Origin.MOVED).close()
    except TrainhopError as error:
        outcome.bad_starts.append(str(error))
    shutil.rmtree(folder)


async def _train(server: BenchServer, known: Acknowledged, stopping: threading.Event) -> None:
    """Submit jobs and finish them, until told to stop."""
    body, loop = await upload(server), asyncio.get_running_loop()

    async def submit() -> None:
        while not stopping.is_set():
            # One connection each: on a busy machine the server closes one that was idle for long.
            connection = await Connection.open("127.0.0.1", server.port)
            known.rows.add(json.loads(await connection.post("/api/v1/jobs", body, server.token))["id"])
            connection.close()
            await asyncio.sleep(PAUSE_S)

    async def work() -> None:
        while not stopping.is_set():
            with suppress(TimeoutError):
                ticket = json.loads(await asyncio.wait_for(loop.sock_recv(server.launches, 65_536), 0.2))
                connection = await Connection.open("127.0.0.1", server.port)
                known.finished.add(await whole_job(connection, ticket["lease"], ticket["token"]))
                connection.close()

    await asyncio.gather(submit(), *(work() for _ in range(WORKERS)))


def _write(server: BenchServer, known: Acknowledged, stopping: threading.Event) -> None:
    """Add members and data files, and delete every second file."""
    headers = {"Authorization": f"Bearer {server.token}"}
    url = f"http://127.0.0.1:{server.port}/api/v1"
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60.0) as client:
        number = 0
        while not stopping.wait(PAUSE_S):
            number += 1
            made = client.post("/members", json={"name": f"member-{number}"}).raise_for_status().json()
            known.rows.add(made["id"])
            rows = json.dumps({"prompt": f"question {number}", "completion": "x" * 4000}) + "\n"
            sent = client.post("/datasets", content=rows.encode(), params={"name": f"{number}.jsonl"})
            sha256 = sent.raise_for_status().json()["sha256"]
            if number % 2:
                client.delete(f"/datasets/{sha256}").raise_for_status()
            else:
                known.files.add(sha256)


def _compare(copy: Path, before: Acknowledged, outcome: Outcome) -> None:
    with closing(sqlite3.connect(copy / "trainhop.db")) as database:

        def ids(query: str) -> set[str]:
            return {row[0] for row in database.execute(query)}

        outcome.missing += sorted(before.rows - ids("SELECT id FROM jobs UNION SELECT id FROM members"))
        outcome.missing += sorted(before.finished - ids("SELECT id FROM jobs WHERE state = 'succeeded'"))
        outcome.missing += sorted(before.files - ids("SELECT sha256 FROM datasets"))
        named = database.execute(
            "SELECT key, sha256 FROM datasets UNION SELECT key, sha256 FROM checkpoints WHERE state = 'committed' "
            "UNION SELECT adapter_key, adapter_zip_sha256 FROM jobs WHERE adapter_key IS NOT NULL"
        ).fetchall()
    for key, sha256 in named:
        path = copy / "store" / key
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            outcome.broken.append(key)
