"""Heartbeats for minutes: the server's memory and its open files stay as they are.

Half of the workers keep their connection, and half open one for each report.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lab import Lab
from benchmarks.load import Connection
from benchmarks.over_http import BenchServer, full_report, running_leases, upload
from benchmarks.report import Figure
from benchmarks.tiny_job import say

LEAST_MINUTES = 30.0
MINUTES = float(os.environ.get("BENCH_STEADY_MINUTES", str(LEAST_MINUTES)))
WORKERS = 48
EVERY_S = 0.5
FLAT = 0.02
"""Share by which the median of the last fifth may differ from that of the second fifth. The first one warms up."""


def steady(folder: Path, minutes: float = MINUTES) -> Iterator[Figure]:
    """Memory and open files of a server under a steady load."""
    server = BenchServer(folder / "server")
    try:
        reports, seen = asyncio.run(_load(server, 60.0 * minutes))
    finally:
        server.stop()
    yield Figure(name="reports acknowledged", value=reports, bar="> 0", ok=reports > 0)
    yield Figure(name="minutes of load", value=minutes, bar=f">= {LEAST_MINUTES:.0f}", ok=minutes >= LEAST_MINUTES)
    for name, values in seen.items():
        fifth = max(1, len(values) // 5)
        before, after = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
        grown = after / before - 1.0
        what = f"{name}: second fifth {before:.0f}, last fifth {after:.0f}, growth"
        yield Figure(name=what, value=round(grown, 4), bar=f"within {FLAT}", ok=abs(grown) <= FLAT)


async def _load(server: BenchServer, seconds: float) -> tuple[int, dict[str, list[int]]]:
    await asyncio.to_thread(Lab.wait_for, lambda: _listens(server.port), "the server's answer")
    held = await running_leases(server, await upload(server), WORKERS)
    until, seen = time.monotonic() + seconds, {"resident pages": list[int](), "open files": list[int]()}
    beats = [_beat(server.port, *lease, until, keep=number % 2 == 0) for number, lease in enumerate(held)]
    *counts, _ = await asyncio.gather(*beats, _look(server.process.pid, seen, until))
    return sum(counts), seen


async def _beat(port: int, lease: str, token: str, fence: int, until: float, *, keep: bool) -> int:
    connection, seq = await Connection.open("127.0.0.1", port), 0
    while time.monotonic() < until:
        seq += 1
        await connection.post(f"/api/v1/leases/{lease}/report", full_report(lease, fence, seq), token)
        if not keep:
            connection.close()
            connection = await Connection.open("127.0.0.1", port)
        await asyncio.sleep(EVERY_S)
    connection.close()
    return seq


async def _look(pid: int, seen: dict[str, list[int]], until: float) -> int:
    while (left := until - time.monotonic()) > 0:
        seen["resident pages"].append(_pages(pid))
        seen["open files"].append(_open_files(pid))
        if len(seen["open files"]) % 30 == 0:
            say(f"  {left:5.0f} s left, {seen['resident pages'][-1]} pages, {seen['open files'][-1]} open files")
        await asyncio.sleep(1.0)
    return 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def _open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
