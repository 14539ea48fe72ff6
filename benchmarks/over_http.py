"""Jobs and heartbeats a second over HTTP: coroutines speak the worker API to a server in a second process.

`jobs_per_second` counts jobs submitted, dispatched, started and finished without any training, so their last message is
a permanent failure and they end FAILED. The jobs of `trained_jobs_per_second` also write and commit a checkpoint and
store an adapter, which the server hashes, and end SUCCEEDED.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import Lab
from benchmarks.load import Connection
from benchmarks.tiny_job import job_file, write_rows
from tests.helpers.manifests import manifest
from worker.shared import checkpoint_file
from worker.shared.manifest import Hardware, Recipe
from worker.shared.messages import (
    Assignment,
    ExportedAdapter,
    Failure,
    Finish,
    GrantKind,
    MetricRow,
    Offer,
    Phase,
    Reading,
    Report,
    StartRequest,
)
from worker.shared.process import tied

JOB_CONNECTIONS, HEARTBEAT_CONNECTIONS = 24, 48

WorkOff = Callable[[Connection, str, str], Awaitable[object]]
"""Does what a worker does with a lease, given its id and token."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How many jobs of each kind and how many heartbeats are sent."""

    jobs: int = 1_500
    trained_jobs: int = 1_500
    heartbeats: int = 8_000


class BenchServer:
    """`benchmarks.bench_server` in a process of its own; its launches arrive on a socket here."""

    def __init__(self, folder: Path, *, without: str = "") -> None:
        folder.mkdir(exist_ok=True)
        (folder / "data" / "server.url").unlink(missing_ok=True)
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.launches = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.launches.bind(str(folder / "launches"))
        self.launches.setblocking(False)
        command = [sys.executable, "-m", "benchmarks.bench_server", str(folder / "data"), str(self.port)]
        self.process = subprocess.Popen(tied([*command, str(folder / "launches"), without]))
        Lab.wait_for((folder / "data" / "server.url").exists, "the server")
        self.token = (folder / "data" / "admin.token").read_text().strip()

    def cpu_s(self) -> float:
        """Processor seconds the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait()


def measure(folder: Path, load: Load, *, without: str = "") -> dict[str, Any]:
    """Rates and processor time per job and heartbeat, on a new server; `without` names an accelerator to leave out."""
    server = BenchServer(folder, without=without)
    try:
        return asyncio.run(_measure(server, load))
    finally:
        server.stop()


def spread(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile (the largest, for few values)."""
    ordered = sorted(values)
    return {"p50": round(statistics.median(ordered), 3), "p99": round(ordered[math.ceil(0.99 * len(ordered)) - 1], 3)}


async def _measure(server: BenchServer, load: Load) -> dict[str, Any]:
    await asyncio.sleep(1.0)
    body = await upload(server)
    bare = await _jobs(server, body, _bare_job, load.jobs)
    whole = await _jobs(server, body, whole_job, load.trained_jobs)
    trained = {f"trained_{name}": value for name, value in whole.items()}
    return bare | trained | await _heartbeats(server, body, load.heartbeats)


async def upload(server: BenchServer) -> bytes:
    rows = write_rows(server.folder / "rows.jsonl").read_bytes()
    connection = await Connection.open("127.0.0.1", server.port)
    answer = json.loads(await connection.post("/api/v1/datasets?name=rows.jsonl", rows, server.token))
    spec = job_file(Path("org/tiny"), f"sha256:{answer['sha256']}", "lora") | {"max_steps": 1, "warmup_ratio": 0.0}
    body = json.dumps(spec).encode()
    # A submit of a file that is still being checked is refused.
    while json.loads(await connection.post("/api/v1/jobs:plan", body, server.token))["unchecked"]:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    connection.close()
    return body


async def _jobs(server: BenchServer, body: bytes, work_off: WorkOff, count: int) -> dict[str, Any]:
    loop, done = asyncio.get_running_loop(), 0
    leases: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    finished = asyncio.Event()

    def arrived() -> None:
        try:
            while True:
                leases.put_nowait(json.loads(server.launches.recv(65_536)))
        except BlockingIOError:
            return

    async def submit(share: int) -> None:
        connection = await Connection.open("127.0.0.1", server.port)
        for _ in range(share):
            await connection.post("/api/v1/jobs", body, server.token)
        connection.close()

    async def work() -> None:
        nonlocal done
        connection = await Connection.open("127.0.0.1", server.port)
        while True:
            ticket = await leases.get()
            await work_off(connection, ticket["lease"], ticket["token"])
            done += 1
            if done == count:
                finished.set()

    loop.add_reader(server.launches, arrived)
    workers = [asyncio.create_task(work()) for _ in range(JOB_CONNECTIONS)]
    began, cpu = time.monotonic(), server.cpu_s()
    await asyncio.gather(
        *(submit(count // JOB_CONNECTIONS + (i < count % JOB_CONNECTIONS)) for i in range(JOB_CONNECTIONS))
    )
    waiting = asyncio.create_task(finished.wait())
    await asyncio.wait([waiting, *workers], return_when=asyncio.FIRST_COMPLETED)
    took, used = time.monotonic() - began, server.cpu_s() - cpu
    loop.remove_reader(server.launches)
    _end(workers)
    return {"jobs_per_second": round(count / took, 1), "cpu_us_per_job": round(1e6 * used / count)}


def _end(workers: list[asyncio.Task[None]]) -> None:
    """Cancel those at work; raises what ended any of them early."""
    for worker in workers:
        if worker.done():
            worker.result()
        worker.cancel()


async def _bare_job(connection: Connection, lease: str, token: str) -> None:
    """Start and finish: a job that cannot train here ends FAILED."""
    assignment = await start(connection, lease, token)
    failure = Failure(message="no training here", permanent=True)
    finish = Finish(lease=lease, fence=assignment.fence, seq=1, step=0, failure=failure)
    await connection.post(f"/api/v1/leases/{lease}/finish", finish.model_dump_json().encode(), token)


async def start(connection: Connection, lease: str, token: str) -> Assignment:
    request = StartRequest(protocol=1, nonce=lease, hardware=Hardware(name="bench"))
    answer = await connection.post(f"/api/v1/leases/{lease}/start", request.model_dump_json().encode(), token)
    return Assignment.model_validate_json(answer)


async def whole_job(connection: Connection, lease: str, token: str) -> str:
    """Start, commit the one step's checkpoint, store the adapter, finish: all that a job is but the training.

    Returns the job's id.
    """
    assignment = await start(connection, lease, token)
    offer = _written(assignment, lease)
    await connection.post(f"/api/v1/leases/{lease}/offer", offer.model_dump_json().encode(), token)
    grant = next(g for g in assignment.uploads if g.kind is GrantKind.ADAPTER)
    content = lease.encode()
    Path(grant.path or "").write_bytes(content)  # noqa: ASYNC240  a few bytes
    digest = hashlib.sha256(content).hexdigest()
    adapter = ExportedAdapter(key=grant.key, sha256=digest, size=len(content), adapter_sha256=digest)
    finish = Finish(lease=lease, fence=assignment.fence, seq=2, step=1, adapter=adapter)
    await connection.post(f"/api/v1/leases/{lease}/finish", finish.model_dump_json().encode(), token)
    return assignment.job


def _written(assignment: Assignment, lease: str) -> Offer:
    grant = next(g for g in assignment.uploads if g.kind is GrantKind.CHECKPOINT)
    made = manifest(assignment.job, 1, Recipe.of(assignment.spec), fence=assignment.fence)
    target = Path(grant.path or "")
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256, size = checkpoint_file.write(target, {"w": np.zeros(4, np.float32)}, made)
    return Offer(lease=lease, fence=assignment.fence, seq=1, key=grant.key, sha256=sha256, size=size, manifest=made)


async def running_leases(server: BenchServer, body: bytes, count: int) -> list[tuple[str, str, int]]:
    """Submit `count` jobs and start them. Returns lease, token and fence of each."""
    setup = await Connection.open("127.0.0.1", server.port)
    held: list[tuple[str, str, int]] = []
    for _ in range(count):
        await setup.post("/api/v1/jobs", body, server.token)
    while len(held) < count:
        ticket = json.loads(await asyncio.get_running_loop().sock_recv(server.launches, 65_536))
        assignment = await start(setup, ticket["lease"], ticket["token"])
        held.append((ticket["lease"], ticket["token"], assignment.fence))
    setup.close()
    return held


async def _heartbeats(server: BenchServer, body: bytes, count: int) -> dict[str, Any]:
    """Full reports (a step's metrics, a look at the machine, the ledger), each answered after it is on disk."""
    held = await running_leases(server, body, HEARTBEAT_CONNECTIONS)
    latencies: list[float] = []
    each = count // HEARTBEAT_CONNECTIONS

    async def beat(lease: str, token: str, fence: int) -> None:
        connection = await Connection.open("127.0.0.1", server.port)
        for seq in range(1, each + 1):
            report = full_report(lease, fence, seq)
            asked = time.monotonic()
            await connection.post(f"/api/v1/leases/{lease}/report", report, token)
            latencies.append(1e3 * (time.monotonic() - asked))
        connection.close()

    began, cpu = time.monotonic(), server.cpu_s()
    await asyncio.gather(*(beat(*lease) for lease in held))
    took, used = time.monotonic() - began, server.cpu_s() - cpu
    return {
        "heartbeats_per_second": round(len(latencies) / took, 1),
        "heartbeat_ms": spread(latencies),
        "cpu_us_per_heartbeat": round(1e6 * used / len(latencies)),
    }


def full_report(lease: str, fence: int, seq: int) -> bytes:
    values = {"loss": 1.0, "grad_norm": 0.5, "learning_rate": 1e-4, "tokens": 4096.0, "tokens_per_s": 900.0}
    report = Report(
        lease=lease,
        fence=fence,
        seq=seq,
        step=seq,
        phase=Phase.TRAIN,
        metrics=(MetricRow(step=seq, values=values),),
        reading=Reading(cpu_percent=50.0, rss_bytes=10**9, ram_used_bytes=10**9, disk_free_bytes=10**10),
        ledger={Phase.TRAIN: 1.0 * seq, Phase.SAVE: 0.1},
        seconds_per_step=4.0,
        seconds_left=3000.0,
    )
    return report.model_dump_json(exclude_defaults=True).encode()
