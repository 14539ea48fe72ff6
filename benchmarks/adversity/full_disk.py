"""The disk becomes full again and again, at random times: for the server, its log, its store and a worker that trains.

All of them are on one small disk (tmpfs, so the benchmark runs as root). Each time it stays full for a moment, while
members and data files are added. What was acknowledged is looked for at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import finished, job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama

TIMES = 60
DISK_BYTES = 192 << 20
FULL_S = 3.0
CALM_S = 1.0
ON_WITHIN_S = 5.0
STEPS = 600
"""Of one job. There is always one that trains."""
LOOP = re.compile(r'^trainhop_loop_round_age_seconds\{loop="(\w+)"\} (\S+)$', re.MULTILINE)
QUICK_LOOPS = ("dispatch", "reconcile", "mailbox", "scheduler", "notifications", "watchdog")


class Disk:
    """A file system of `DISK_BYTES` that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def __enter__(self) -> Self:
        self.folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.folder)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    def fill(self, until: float) -> None:
        """Take all room, and what becomes free, until this time."""
        with self._filler.open("ab", buffering=0) as file:
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    while file.write(bytes(1 << 20)):
                        pass
                with contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
                time.sleep(0.02)

    def free(self) -> None:
        """Give all room back."""
        self._filler.unlink()


class Writes:
    """Adds members and data files, and remembers what was acknowledged."""

    def __init__(self, server: Lab) -> None:
        self._server = server
        self.members = dict[str, str]()
        self.files = dict[str, bytes]()
        self.answers: Counter[int] = Counter()
        self._number = 0

    def once(self) -> bool:
        """Add one of each. Returns whether both were acknowledged."""
        self._number += 1
        name = f"member-{self._number}"
        rows = json.dumps({"messages": [{"role": r, "content": f"{name} {r}"} for r in ("user", "assistant")]}).encode()
        with contextlib.suppress(httpx.TransportError):
            made = self._server.client.post("/members", json={"name": name, "role": "member"})
            put = self._server.client.post("/datasets", params={"name": f"{name}.jsonl"}, content=rows)
            self.answers.update([made.status_code, put.status_code])
            if made.is_success:
                self.members[name] = made.json().get("id", "")
            if put.is_success:
                self.files[put.json()["sha256"]] = rows
            return made.is_success and put.is_success
        self.answers.update([0])
        return False

    def lost(self) -> list[str]:
        """What was acknowledged and is not there."""
        there = {member["name"] for member in _all(self._server, "/members")}
        known = {file["sha256"] for file in _all(self._server, "/datasets")}
        folder = self._server.data / "store"
        stored = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
        gone = [name for name in self.members if name not in there]
        return gone + [sha256 for sha256 in self.files if sha256 not in known or sha256 not in stored]


def full_disk(folder: Path, times: int = TIMES, steps: int = STEPS) -> Iterator[Figure]:
    """Fill the disk `times` times while jobs of `steps` steps train, one after the other."""
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(folder)]), "offline": True, "report_every_s": 1}
    quick = {"local_slots": 1, "reconcile_s": 0.5, "letters_s": 1}
    with Disk(folder / "disk") as disk, lab(disk.folder / "lab", **settings, **quick) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        changes = {"max_steps": steps, "eval_steps": steps, "checkpoint": {"max_interval_s": 2}}
        file = job_file(model, server.upload(rows), "lora") | changes
        jobs = [server.post("/jobs", file)["id"]]
        server.wait_for(lambda: server.job(jobs[0])["step"] > 0, "the first step")
        writes, chance = Writes(server), random.Random(11)
        waits, late = list[float](), Counter[str]()
        for number in range(times):
            _fill_once(disk, writes, chance)
            waits.append(_goes_on(server, writes))
            late.update(_dead(server))
            time.sleep(chance.uniform(0.0, CALM_S))
            step = server.job(jobs[-1])["step"]
            say(f"  {number + 1}/{times} job {len(jobs)} step {step} {dict(writes.answers)} {waits[-1]:.2f} s")
            if number + 1 < times and finished(server, jobs[-1]):
                jobs.append(server.post("/jobs", file)["id"])
        server.wait_for(lambda: finished(server, jobs[-1]), "the end of the job", patience_s=600.0, every_s=0.5)
        yield from _of_writes(writes, waits, late)
        yield from _of_jobs(server, jobs, steps)


def _fill_once(disk: Disk, writes: Writes, chance: random.Random) -> None:
    until = time.monotonic() + chance.uniform(0.3, FULL_S)
    while time.monotonic() < until:
        disk.fill(min(until, time.monotonic() + 0.2))
        writes.once()
    disk.free()


def _goes_on(server: Lab, writes: Writes) -> float:
    """Seconds until writes are acknowledged and the server is ready."""
    began = time.monotonic()
    ready = str(server.client.base_url).replace("/api/v1/", "/readyz")
    while not (writes.once() and server.client.get(ready).is_success):
        if time.monotonic() - began > 10 * ON_WITHIN_S:
            break
        time.sleep(0.05)
    return time.monotonic() - began


def _dead(server: Lab) -> list[str]:
    """Loops that end no round within a few seconds."""
    metrics, silent = str(server.client.base_url).replace("/api/v1/", "/metrics"), set(QUICK_LOOPS)
    until = time.monotonic() + ON_WITHIN_S + 1.0
    while silent and time.monotonic() < until:
        ages = {name: float(age) for name, age in LOOP.findall(server.client.get(metrics).text)}
        silent = {name for name in QUICK_LOOPS if ages.get(name, 1e9) > ON_WITHIN_S}
        time.sleep(0.05)
    return sorted(silent)


def _of_writes(writes: Writes, waits: list[float], late: Counter[str]) -> Iterator[Figure]:
    lost = writes.lost()
    refused = sum(n for status, n in writes.answers.items() if not 200 <= status < 300)
    errors = sum(n for status, n in writes.answers.items() if status >= 500 and status != 503) + writes.answers[0]
    yield Figure(name="times the disk was filled", value=len(waits), bar=f">= {TIMES}", ok=len(waits) >= TIMES)
    yield Figure(name="writes refused on the full disk", value=refused, bar="> 0", ok=refused > 0)
    count = len(writes.members) + len(writes.files)
    yield Figure(name=f"lost of {count} acknowledged writes", value=len(lost), bar="0", ok=not lost)
    yield Figure(name="answers other than success or 503", value=errors, bar="0", ok=errors == 0)
    yield Figure(name="loops dead", value=dict(late), bar="none", ok=not late)
    longest = round(max(waits), 2)
    yield Figure(name="seconds until it goes on, longest", value=longest, bar="<= 5", ok=longest <= ON_WITHIN_S)


def _of_jobs(server: Lab, jobs: list[str], steps: int) -> Iterator[Figure]:
    sessions = repeated = missing = 0
    for job in jobs:
        points = {p["step"] for p in server.get(f"/jobs/{job}/metrics", name="loss")["items"]}
        missing += len(set(range(1, steps + 1)) - points)
        sessions += len(server.get(f"/jobs/{job}/sessions")["items"])
        repeated += server.job(job)["steps_repeated"]
    yield Figure(name=f"sessions of {len(jobs)} jobs", value=sessions, bar="one each", ok=sessions == len(jobs))
    yield Figure(name="steps repeated", value=repeated, bar="0", ok=repeated == 0)
    all_steps = steps * len(jobs)
    yield Figure(name=f"steps without a stored loss, of {all_steps}", value=missing, bar="0", ok=missing == 0)


def _all(server: Lab, path: str) -> list[dict[str, Any]]:
    found, cursor = list[dict[str, Any]](), None
    while True:
        page = server.get(path, limit=200, **({"cursor": cursor} if cursor else {}))
        found += page["items"]
        cursor = page["next"]
        if not cursor:
            return found
