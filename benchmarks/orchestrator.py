"""How fast the server is, without any training.

    python -m benchmarks.orchestrator --json

`*_ms` and `*_s` of starting things are measured on real worker processes; rates over HTTP with coroutines that speak the
worker API from a second process; claims through the dispatcher itself on databases of several sizes. SQLite with
`synchronous=FULL` throughout. Times on shared cores are noisy: CPU per heartbeat is the figure that travels.

`jobs_per_second` counts jobs submitted, dispatched, started and finished over HTTP without any training, so their last word
is a permanent failure and they end FAILED. The jobs of `trained_jobs_per_second` also write and commit a checkpoint and
store an adapter, which the server hashes, and end SUCCEEDED.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import claims
from benchmarks.lab import Lab, lab
from benchmarks.load import Connection
from benchmarks.tiny_job import job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama
from worker.shared import checkpoint_file
from worker.shared.messages import (
    Assignment,
    ExportedAdapter,
    Failure,
    Finish,
    GrantKind,
    Hardware,
    Manifest,
    MetricRow,
    Offer,
    Phase,
    Reading,
    Recipe,
    Report,
    StartRequest,
)

STARTS, CUTS = 15, 6
JOBS, JOB_CONNECTIONS = 1_500, 24
HEARTBEATS, HEARTBEAT_CONNECTIONS = 8_000, 48

WorkOff = Callable[[Connection, str, str], Awaitable[None]]
"""Does what a worker does with a lease, given its id and token."""


def main() -> int:
    """Run every part and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", default="10000,100000,1000000", help="table sizes for the claims")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as temporary:
        folder = Path(temporary)
        result = {
            **starts(folder / "starts"),
            **cuts(folder / "cuts"),
            **over_http(folder / "http"),
            "durable_claims_per_second": {
                rows: claims(folder / f"claims-{rows}", rows) for rows in map(int, asked.rows.split(","))
            },
            "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        }
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))
    return 0


def spread(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile (the largest, for few values)."""
    ordered = sorted(values)
    return {"p50": round(statistics.median(ordered), 3), "p99": round(ordered[math.ceil(0.99 * len(ordered)) - 1], 3)}


# --- real worker processes -------------------------------------------------------------------------------


def _lab(folder: Path) -> Any:
    folder.mkdir()
    model = make_tiny_llama(folder / "model")
    return model, lab(folder, allowed_folders=json.dumps([str(model.parent)]), offline=True, report_every_s=5)


def _began(server: Lab, lease: str) -> float | None:
    """The monotonic time at which a worker's first statement ran; one clock for every process of a computer."""
    log = server.data / "sessions" / lease / "output.log"
    first = log.read_text().partition("\n")[0] if log.exists() else ""
    return float(first.split()[3]) if first.startswith("worker started at") and first.endswith(")") else None


def _new_worker(server: Lab, known: set[str]) -> tuple[str, float]:
    def look() -> tuple[str, float] | None:
        for home in (server.data / "sessions").glob("lease-*"):
            if home.name not in known and (began := _began(server, home.name)) is not None:
                return home.name, began
        return None

    lease, began = server.wait_for(look, "a worker", every_s=0.002)
    known.add(lease)
    return lease, began


def starts(folder: Path) -> dict[str, Any]:
    """From the submit request to the first statement of a new worker process."""
    say("submit to start ...")
    model, running = _lab(folder)
    took: list[float] = []
    with running as server:
        data, known = server.upload(write_rows(folder / "rows.jsonl")), set[str]()
        for _ in range(STARTS):
            asked = time.monotonic()
            job = server.post("/jobs", job_file(model, data, "lora"))["id"]
            lease, began = _new_worker(server, known)
            took.append(1e3 * (began - asked))
            server.wait_for(lambda job=job: server.job(job)["state"] == "running", "the start")
            server.post(f"/jobs/{job}:cancel")
            os.kill(server.workers()[lease], signal.SIGKILL)
            server.wait_for(lambda job=job: server.job(job)["state"] == "cancelled", "the end")
    return {"submit_to_start_ms": spread(took)}


def cuts(folder: Path) -> dict[str, Any]:
    """From a goodbye (as the server heard it) or a SIGKILL to the first statement of the next worker process."""
    say("redispatch ...")
    model, running = _lab(folder)
    goodbyes: list[float] = []
    kills: list[float] = []
    offset = time.time() - time.monotonic()
    with running as server:
        known = set[str]()
        file = job_file(model, server.upload(write_rows(folder / "rows.jsonl")), "lora") | {"max_steps": 100_000}
        job = server.post("/jobs", file)["id"]
        lease, _ = _new_worker(server, known)
        for number in range(2 * CUTS):
            head = server.job(job)["head"]
            step = head["step"] if head else 0
            server.wait_for(lambda step=step: (server.job(job)["head"] or {"step": 0})["step"] > step, "progress")
            asked = time.monotonic()
            how = signal.SIGTERM if number % 2 else signal.SIGKILL
            os.kill(server.workers()[lease], how)
            lease, began = _new_worker(server, known)
            if how is signal.SIGKILL:
                kills.append(began - asked)
            else:
                heard = [
                    e["at"] for e in server.get(f"/jobs/{job}/events", limit=1000)["items"] if e["kind"] == "job.queued"
                ]
                goodbyes.append(1e3 * (began + offset - datetime.fromisoformat(heard[-1]).timestamp()))
        server.post(f"/jobs/{job}:cancel")
    return {"redispatch_after_goodbye_ms": spread(goodbyes), "redispatch_after_kill_s": spread(kills)}


# --- over HTTP, without processes ------------------------------------------------------------------------


class BenchServer:
    """`benchmarks.bench_server` in a process of its own; its launches arrive on a socket here."""

    def __init__(self, folder: Path) -> None:
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
        self.process = subprocess.Popen([*command, str(folder / "launches")])
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


def over_http(folder: Path) -> dict[str, Any]:
    """Jobs and heartbeats per second."""
    say("jobs and heartbeats over HTTP ...")
    server = BenchServer(folder)
    try:
        return asyncio.run(_over_http(server))
    finally:
        server.stop()


async def _over_http(server: BenchServer) -> dict[str, Any]:
    await asyncio.sleep(1.0)
    body = await _upload(server)
    bare = await _jobs(server, body, _bare_job)
    trained = {f"trained_{name}": value for name, value in (await _jobs(server, body, _whole_job)).items()}
    return bare | trained | await _heartbeats(server, body)


async def _upload(server: BenchServer) -> bytes:
    rows = write_rows(server.folder / "rows.jsonl").read_bytes()
    connection = await Connection.open("127.0.0.1", server.port)
    answer = json.loads(await connection.post("/api/v1/datasets?name=rows.jsonl", rows, server.token))
    connection.close()
    spec = job_file(Path("org/tiny"), f"sha256:{answer['sha256']}", "lora") | {"max_steps": 1, "warmup_ratio": 0.0}
    return json.dumps(spec).encode()


async def _jobs(server: BenchServer, body: bytes, work_off: WorkOff) -> dict[str, Any]:
    loop, done = asyncio.get_running_loop(), 0
    leases: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    finished = asyncio.Event()

    def arrived() -> None:
        try:
            while True:
                leases.put_nowait(json.loads(server.launches.recv(65_536)))
        except BlockingIOError:
            return

    async def submit(count: int) -> None:
        connection = await Connection.open("127.0.0.1", server.port)
        for _ in range(count):
            await connection.post("/api/v1/jobs", body, server.token)
        connection.close()

    async def work() -> None:
        nonlocal done
        connection = await Connection.open("127.0.0.1", server.port)
        while True:
            ticket = await leases.get()
            await work_off(connection, ticket["lease"], ticket["token"])
            done += 1
            if done == JOBS:
                finished.set()

    loop.add_reader(server.launches, arrived)
    workers = [asyncio.create_task(work()) for _ in range(JOB_CONNECTIONS)]
    began, cpu = time.monotonic(), server.cpu_s()
    await asyncio.gather(
        *(submit(JOBS // JOB_CONNECTIONS + (i < JOBS % JOB_CONNECTIONS)) for i in range(JOB_CONNECTIONS))
    )
    waiting = asyncio.create_task(finished.wait())
    await asyncio.wait([waiting, *workers], return_when=asyncio.FIRST_COMPLETED)
    took, used = time.monotonic() - began, server.cpu_s() - cpu
    loop.remove_reader(server.launches)
    _end(workers)
    return {"jobs_per_second": round(JOBS / took, 1), "cpu_us_per_job": round(1e6 * used / JOBS)}


def _end(workers: list[asyncio.Task[None]]) -> None:
    """Cancel those at work; raises what ended any of them early."""
    for worker in workers:
        if worker.done():
            worker.result()
        worker.cancel()


async def _bare_job(connection: Connection, lease: str, token: str) -> None:
    """Start and finish: a job that cannot train here ends FAILED."""
    assignment = await _start(connection, lease, token)
    failure = Failure(message="no training here", permanent=True)
    finish = Finish(lease=lease, fence=assignment.fence, seq=1, step=0, failure=failure)
    await connection.post(f"/api/v1/leases/{lease}/finish", finish.model_dump_json().encode(), token)


async def _start(connection: Connection, lease: str, token: str) -> Assignment:
    request = StartRequest(protocol=1, nonce=lease, hardware=Hardware(name="bench"))
    answer = await connection.post(f"/api/v1/leases/{lease}/start", request.model_dump_json().encode(), token)
    return Assignment.model_validate_json(answer)


async def _whole_job(connection: Connection, lease: str, token: str) -> None:
    """Start, commit the one step's checkpoint, store the adapter, finish: all that a job is but the training."""
    assignment = await _start(connection, lease, token)
    offer = _written(assignment, lease)
    await connection.post(f"/api/v1/leases/{lease}/offer", offer.model_dump_json().encode(), token)
    grant = next(g for g in assignment.uploads if g.kind is GrantKind.ADAPTER)
    content = lease.encode()
    Path(grant.path or "").write_bytes(content)  # noqa: ASYNC240  a few bytes
    digest = hashlib.sha256(content).hexdigest()
    adapter = ExportedAdapter(key=grant.key, sha256=digest, size=len(content), adapter_sha256=digest)
    finish = Finish(lease=lease, fence=assignment.fence, seq=2, step=1, adapter=adapter)
    await connection.post(f"/api/v1/leases/{lease}/finish", finish.model_dump_json().encode(), token)


def _written(assignment: Assignment, lease: str) -> Offer:
    grant = next(g for g in assignment.uploads if g.kind is GrantKind.CHECKPOINT)
    manifest = Manifest(
        job=assignment.job,
        fence=assignment.fence,
        step=1,
        recipe=Recipe.of(assignment.spec),
        epoch=0,
        index=8,
        samples_seen=8,
        wall_seconds=0.0,
        backend="bench",
        precision="fp32",
        micro_batch_size=2,
        hardware=Hardware(),
        versions={},
        state={},
    )
    target = Path(grant.path or "")
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256, size = checkpoint_file.write(target, {"w": np.zeros(4, np.float32)}, manifest)
    return Offer(lease=lease, fence=assignment.fence, seq=1, key=grant.key, sha256=sha256, size=size, manifest=manifest)


async def _heartbeats(server: BenchServer, body: bytes) -> dict[str, Any]:
    """Full reports (a step's metrics, a look at the machine, the ledger), each answered after it is on disk."""
    setup = await Connection.open("127.0.0.1", server.port)
    held: list[tuple[str, str, int]] = []
    for _ in range(HEARTBEAT_CONNECTIONS):
        await setup.post("/api/v1/jobs", body, server.token)
    while len(held) < HEARTBEAT_CONNECTIONS:
        ticket = json.loads(await asyncio.get_running_loop().sock_recv(server.launches, 65_536))
        assignment = await _start(setup, ticket["lease"], ticket["token"])
        held.append((ticket["lease"], ticket["token"], assignment.fence))
    latencies: list[float] = []

    async def beat(lease: str, token: str, fence: int, count: int) -> None:
        connection = await Connection.open("127.0.0.1", server.port)
        for seq in range(1, count + 1):
            report = _report(lease, fence, seq)
            asked = time.monotonic()
            await connection.post(f"/api/v1/leases/{lease}/report", report, token)
            latencies.append(1e3 * (time.monotonic() - asked))
        connection.close()

    each = HEARTBEATS // HEARTBEAT_CONNECTIONS
    began, cpu = time.monotonic(), server.cpu_s()
    await asyncio.gather(*(beat(*lease, each) for lease in held))
    took, used = time.monotonic() - began, server.cpu_s() - cpu
    count = len(latencies)
    return {
        "heartbeats_per_second": round(count / took, 1),
        "heartbeat_ms": spread(latencies),
        "cpu_us_per_heartbeat": round(1e6 * used / count),
    }


def _report(lease: str, fence: int, seq: int) -> bytes:
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


if __name__ == "__main__":
    sys.exit(main())
