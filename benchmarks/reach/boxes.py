"""Machines that have joined are killed, restarted, and lose their network for a long time, 20 of each at once.

Server, agents and processes are real. Sessions take real checkpoints and only sleep in place of training
(`light_worker`). A lease lasts 3 seconds, so 90 seconds without a network are as many leases as half an hour is with
the usual 60, and longer than a machine may be silent. A restart is a SIGKILL of everything and a new id of the boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, lab
from benchmarks.reach.line import Line
from benchmarks.report import Figure
from benchmarks.tiny_job import say, write_rows
from benchmarks.tiny_model import make_tiny_llama
from worker.joined import joining
from worker.shared.process import tied

MACHINES = 20
STEPS = 30
LEASE_S, AWAY_S = 3.0, 90.0
PATIENCE_S = 420.0
FAULTS = ("killed", "restarted", "without a network")


@dataclass
class Box:
    """One machine: its folder, its line to the server and its agent's process."""

    folder: Path
    line: Line
    boot: int = 1
    process: subprocess.Popen[bytes] | None = None
    faults: list[str] = field(default_factory=list)

    def work(self) -> None:
        """Start its agent."""
        command = [sys.executable, "-m", "benchmarks.reach.light_agent", str(self.folder), str(self.boot)]
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(tied(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self, *, sessions: bool) -> None:
        """SIGKILL its agent, and with `sessions` everything that it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for note in self.folder.glob("sessions/*/pid.json") if sessions else ():
            with contextlib.suppress(OSError, ValueError):
                os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)


def figures(folder: Path) -> Iterator[Figure]:
    """Each fault hits 20 machines, at random moments of their sessions."""
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "local_slots": 0}
    limits = {"lease_s": LEASE_S, "report_every_s": 1, "reconcile_s": 0.5}
    with lab(folder / "lab", **settings, **limits) as server:
        data = server.upload(rows)
        for fault in FAULTS:
            yield from _round(server, folder / fault.replace(" ", "-"), fault, model, data)


def _round(server: Lab, folder: Path, fault: str, model: Path, data: str) -> Iterator[Figure]:
    say(f"{fault} ...")
    port = int(str(server.client.base_url).split(":")[2].partition("/")[0])
    boxes, jobs = [_joined(server, folder / str(n), port) for n in range(MACHINES)], []
    try:
        threads = [threading.Thread(target=box.work) for box in boxes]
        for thread in threads:
            thread.start()
        server.wait_for(lambda: len(_ready(server)) == MACHINES, "the machines", PATIENCE_S, 1)
        for machine in _ready(server):
            asked = {"base_model": str(model), "datasets": [{"path": data}], "adapter": "lora", "max_steps": STEPS}
            jobs.append(server.post("/jobs", asked | {"placement": {"accounts": [machine["name"]]}})["id"])
        server.wait_for(lambda: all(_steps(box) for box in boxes), "the first steps", PATIENCE_S, 1)
        _hit(boxes, fault)
        server.wait_for(lambda: all(_over(server, job) for job in jobs), "the jobs' ends", PATIENCE_S, 2)
        yield from _judged(boxes, jobs, fault, server)
    finally:
        for box in boxes:
            box.kill(sessions=True)
            box.line.close()
        for machine in server.get("/machines")["items"]:
            with contextlib.suppress(RuntimeError):
                server.client.delete(f"/accounts/{machine['account_id']}")


def _joined(server: Lab, folder: Path, port: int) -> Box:
    box = Box(folder=folder, line=Line(port))
    folder.mkdir(parents=True)
    code = server.post("/machine-codes")["code"]
    joining.join(folder, box.line.url, code, lambda _: None, name=f"{folder.parent.name}-{folder.name}")
    account = next(m for m in server.get("/machines")["items"] if m["name"] == f"{folder.parent.name}-{folder.name}")
    server.patch(f"/accounts/{account['account_id']}", {"config": {"same_folders": True}})
    return box


def _ready(server: Lab) -> list[dict[str, Any]]:
    return [m for m in server.get("/machines")["items"] if m["quiet_s"] is not None and not m["closed_reason"]]


def _hit(boxes: list[Box], fault: str) -> None:
    chance = random.Random(11)
    if fault == "without a network":
        for box in boxes:
            box.line.cut()
        time.sleep(AWAY_S)
        for box in boxes:
            box.line.mend()
        return
    for box in boxes:
        time.sleep(chance.uniform(0.0, 0.6))
        # Every second time the sessions of a killed agent live on.
        box.kill(sessions=fault == "restarted" or chance.random() < 0.5)
        box.boot += fault == "restarted"
    for box in boxes:
        time.sleep(chance.uniform(0.0, 0.4))
        box.work()


def _lines(box: Box) -> list[list[str]]:
    path = box.folder / "ledger.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _steps(box: Box) -> int:
    return sum(line[0] == "step" for line in _lines(box))


def _over(server: Lab, job: str) -> bool:
    return server.job(job)["state"] in ("succeeded", "failed", "cancelled")


def _judged(boxes: list[Box], jobs: list[str], fault: str, server: Lab) -> Iterator[Figure]:
    done = sum(server.job(job)["state"] == "succeeded" for job in jobs)
    lost, doubled, sessions = 0, 0, 0
    for box in boxes:
        saved, ended, by_fence = 0, 0.0, defaultdict[int, list[list[str]]](list)
        for line in _lines(box):
            by_fence[int(line[2])].append(line)
        for _, lines in sorted(by_fence.items()):
            sessions += 1
            begin = next(line for line in lines if line[0] == "begin")
            lost += int(begin[3]) < saved
            doubled += float(begin[4]) < ended or sum(line[0] == "begin" for line in lines) > 1
            saved = max([saved, *(int(line[3]) for line in lines if line[0] == "saved")])
            ended = float(lines[-1][4])
    yield Figure(name=f"{fault}: jobs that succeeded", value=f"{done} of {MACHINES}", bar="all", ok=done == MACHINES)
    yield Figure(name=f"{fault}: sessions that began before the last checkpoint", value=lost, bar="0", ok=lost == 0)
    yield Figure(name=f"{fault}: sessions that ran twice or at the same time", value=doubled, bar="0", ok=doubled == 0)
    most = MACHINES if fault == "without a network" else 2 * MACHINES
    yield Figure(name=f"{fault}: sessions", value=sessions, bar=f"<= {most}", ok=sessions <= most)
