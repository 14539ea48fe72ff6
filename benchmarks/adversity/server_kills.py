"""A real server is killed by SIGKILL at random moments: under load, at its first start, and while it migrates.

Every write that it acknowledged must be there afterwards, once. A write without an answer may be there, at most once,
and is repeated with its Idempotency-Key after the restart, which must not double it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.adversity.nursery import Nursery
from benchmarks.adversity.revisions import Revisions
from benchmarks.adversity.shards import Shard, in_shards
from benchmarks.report import Figure
from benchmarks.tiny_job import say

KILLS = int(os.environ.get("BENCH_SERVER_KILLS", "1000"))
"""How many kills. 1,000 took 2.3 s each while other programs kept both cores busy."""
MAX_KILLS_PER_FOLDER = 100
"""A new folder then, so that the comparison stays quick."""
WRITERS = 4
MAX_LOAD_S, MAX_START_S = 0.5, 1.5
PATIENCE_S = 60.0
ROWS = b'{"prompt": "a", "completion": "b"}\n'
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading the usual certificates takes longer than a request."""
SETTINGS = {"offline": True, "local_slots": 0}


@dataclass
class Outcome:
    """What was tried, and what was wrong."""

    kills: Counter[str] = field(default_factory=Counter[str])
    acknowledged: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])


@dataclass
class Writes:
    """Names of jobs and members that clients have written, by whether the server acknowledged them."""

    acknowledged: set[str] = field(default_factory=set[str])
    unanswered: set[str] = field(default_factory=set[str])


class Server:
    """One running server and how to reach it."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery, self.folder = nursery, folder
        self.pid = nursery.start(folder, **SETTINGS)

    def wait(self) -> Server:
        """Wait until it answers. Raises `RuntimeError` with the end of its log if it does not."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and Path(f"/proc/{self.pid}").exists():
            with suppress(OSError, httpx.HTTPError):
                url = (self.folder / "server.url").read_text().strip()
                if url and self.client(url).get("/me").status_code == 200:
                    return self
            time.sleep(0.02)
        tail = (self.folder / "log").read_text(errors="replace").splitlines()[-3:]
        raise RuntimeError(f"the server did not start again: {' '.join(tail)}")

    def client(self, url: str | None = None) -> httpx.Client:
        url = url or (self.folder / "server.url").read_text().strip()
        token = (self.folder / "admin.token").read_text().strip()
        return httpx.Client(
            base_url=f"{url}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=PATIENCE_S,
            verify=NO_TLS,
        )

    def kill(self) -> bool:
        return self._nursery.kill(self.pid)


def server_kills(folder: Path) -> Iterator[Figure]:
    """Kill servers, several at once if asked, and count what was lost or doubled."""
    outcome = Outcome()
    for part in in_shards(_kill_servers, folder, KILLS):
        outcome.kills += part.kills
        outcome.acknowledged += part.acknowledged
        outcome.repeated += part.repeated
        for name in ("lost", "doubled", "broken"):
            getattr(outcome, name).extend(getattr(part, name))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.kills.items()))
    yield Figure(
        name="SIGKILLs of the server",
        value=f"{outcome.kills.total()} ({kinds})",
        bar=">= 1000",
        ok=outcome.kills.total() >= 1000,
    )
    yield Figure(name="acknowledged writes", value=outcome.acknowledged, bar="> 0", ok=outcome.acknowledged > 0)
    yield Figure(name="writes repeated after a kill", value=outcome.repeated, bar="> 0", ok=outcome.repeated > 0)
    for name, found in (("lost", outcome.lost), ("doubled", outcome.doubled), ("starts that failed", outcome.broken)):
        yield Figure(name=name, value=found[:3] or 0, bar="0", ok=not found)


def _kill_servers(shard: Shard) -> Outcome:
    """Kill servers of this process until it has made its kills."""
    chance, outcome = random.Random(15 + shard.number), Outcome()
    revisions = Revisions(shard.folder / "revisions")
    with Nursery() as nursery:
        number = 0
        while (left := shard.amount - outcome.kills.total()) > 0:
            number += 1
            _kill_under_load(nursery, shard.folder / f"load-{number}", min(MAX_KILLS_PER_FOLDER, left), chance, outcome)
            for _ in range(MAX_KILLS_PER_FOLDER // 20):
                shutil.rmtree(shard.folder / "first", ignore_errors=True)
                _kill_a_start(nursery, shard.folder / "first", None, chance, outcome)
                template = revisions.template(chance.choice(revisions.names))
                _kill_a_start(nursery, revisions.data_folder("migration", template), template, chance, outcome)
            say(f"  {outcome.kills.total()} kills, {outcome.acknowledged} acknowledged writes")
    return outcome


def _kill_under_load(nursery: Nursery, folder: Path, wanted: int, chance: random.Random, outcome: Outcome) -> None:
    """Kill a server again and again while clients write. Each time the next one is compared with what they know."""
    writes, dataset = Writes(), ""
    for round_number in range(wanted + 1):
        if (server := _started(nursery, folder, outcome)) is None:
            return
        with server.client() as client:
            if not dataset:
                sent = client.post("/datasets", content=ROWS, params={"name": "rows.jsonl"})
                dataset = sent.raise_for_status().json()["sha256"]
            _repeat(client, writes, dataset, outcome)
        _compare(folder, writes, outcome)
        if round_number < wanted:
            _write_until_killed(server, writes, f"{folder.name}-{round_number}", dataset, chance.random() * MAX_LOAD_S)
            outcome.kills["under load"] += 1
    server.kill()
    shutil.rmtree(folder)
    outcome.acknowledged += len(writes.acknowledged)


def _started(nursery: Nursery, folder: Path, outcome: Outcome) -> Server | None:
    """A server that answers. None if it could not start, which is recorded."""
    server = Server(nursery, folder)
    try:
        server.wait()
    except RuntimeError as error:
        outcome.broken.append(str(error))
        return None
    return server


def _write_until_killed(server: Server, writes: Writes, prefix: str, dataset: str, after_s: float) -> None:
    threads = [
        threading.Thread(target=_write, args=(server, writes, f"{prefix}-{number}", dataset), daemon=True)
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(after_s)
    server.kill()
    for thread in threads:
        thread.join(PATIENCE_S)


def _write(server: Server, writes: Writes, prefix: str, dataset: str) -> None:
    """Submit jobs and add members, one after the other, until the server is gone."""
    with suppress(OSError, httpx.HTTPError), server.client() as client:
        for number in range(10_000):
            name = f"{prefix}-{number}"
            writes.unanswered.add(name)
            answer = _send(client, name, dataset, is_job=number % 2 == 0)
            if answer.status_code == 201:
                writes.acknowledged.add(name)
                writes.unanswered.discard(name)


def _send(client: httpx.Client, name: str, dataset: str, *, is_job: bool) -> httpx.Response:
    if not is_job:
        return client.post("/members", json={"name": name})
    job: dict[str, Any] = {
        "name": name,
        "base_model": "tiny",
        "datasets": [{"path": f"sha256:{dataset}"}],
        "max_steps": 1,
        "placement": {"max_session_s": 60},
    }
    return client.post("/jobs", json=job, headers={"Idempotency-Key": name})


def _repeat(client: httpx.Client, writes: Writes, dataset: str, outcome: Outcome) -> None:
    """Send again what got no answer. A name that is there already is a conflict, and the write is then known."""
    for name in sorted(writes.unanswered):
        is_job = int(name.rpartition("-")[2]) % 2 == 0
        answer = _send(client, name, dataset, is_job=is_job)
        if answer.status_code == 201 or (answer.status_code == 409 and not is_job):
            writes.acknowledged.add(name)
            outcome.repeated += 1
        else:
            outcome.broken.append(f"{name}: {answer.status_code} {answer.text[:200]}")
    writes.unanswered.clear()


def _compare(folder: Path, writes: Writes, outcome: Outcome) -> None:
    """Compare the database with what clients know."""
    database = sqlite3.connect(f"file:{folder / 'trainhop.db'}?mode=ro", uri=True)
    there = Counter(name for table in ("jobs", "members") for (name,) in database.execute(f"SELECT name FROM {table}"))
    database.close()
    outcome.lost += [name for name in writes.acknowledged if name not in there]
    outcome.doubled += [name for name, count in there.items() if count > 1]


def _kill_a_start(
    nursery: Nursery, folder: Path, template: Path | None, chance: random.Random, outcome: Outcome
) -> None:
    """Kill a server twice while it starts on a new folder or on one of an earlier revision, then start it again."""
    for _ in range(2):
        server = Server(nursery, folder)
        time.sleep(chance.random() * MAX_START_S)
        server.kill()
        outcome.kills["migrations" if template else "first starts"] += 1
    if (server := _started(nursery, folder, outcome)) is None:
        return
    with server.client() as client:
        admins = [m for m in client.get("/members").json()["items"] if m["role"] == "admin"]
        pools = [a for a in client.get("/accounts").json()["items"] if a["name"] == "this-computer"]
    server.kill()
    if (len(admins), len(pools)) != (1, 1):
        outcome.doubled.append(f"{len(admins)} admins and {len(pools)} pools after a killed start")
    before, after = _rows(template) if template is not None else {}, _rows(folder / "trainhop.db")
    outcome.lost += [f"{table}: {row}" for table, rows in before.items() for row in rows - after.get(table, set())]


def _rows(path: Path) -> dict[str, set[str]]:
    """The ids of all rows of the tables that every revision has."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = {
        table: {str(row[0]) for row in database.execute(f"SELECT id FROM {table}")}
        for table in ("members", "accounts", "jobs", "leases", "events")
    }
    database.close()
    return found
