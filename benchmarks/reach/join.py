"""From `trainhop join` to the first step of a job that has waited for the machine: real command, real training.

The same job on the server's own computer shows which part is the worker's own start.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama

ROUNDS = 3
BAR_S = 10.0
PATIENCE_S = 180.0


def figures(folder: Path) -> Iterator[Figure]:
    """The median of some rounds, each with a new machine and a new job."""
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "local_slots": 1}
    with lab(folder / "lab", **settings, report_every_s=1, reconcile_s=0.5) as server:
        data = server.upload(rows)
        joined = [_joined(server, folder / f"machine-{n}", model, data) for n in range(ROUNDS)]
        here = [_here(server, model, data) for _ in range(ROUNDS)]
    load = os.getloadavg()[0]
    took = statistics.median(joined)
    yield Figure(name="seconds from `trainhop join` to the first step", value=took, bar="<= 10", ok=took <= BAR_S)
    yield Figure(
        name="seconds from a submit to the first step on the server's own computer",
        value=statistics.median(here),
        bar="for comparison",
        ok=True,
    )
    yield Figure(name="load of this machine at the end", value=load, bar="for comparison", ok=True)


def _submit(server: Lab, model: Path, data: str, provider: str) -> str:
    return server.post("/jobs", job_file(model, data, "lora") | {"placement": {"providers": [provider]}})["id"]


def _until_first_step(log: Callable[[], str], began: float) -> float:
    Lab.wait_for(lambda: "\nstep 1 " in log(), "the first step", PATIENCE_S, 0.02)
    return round(time.monotonic() - began, 2)


def _joined(server: Lab, folder: Path, model: Path, data: str) -> float:
    job, command = _submit(server, model, data, "joined"), server.post("/machine-codes")["command"].split()[1:]
    # A folder of the server is sent to no machine, and a model of the hub would need a network.
    began = time.monotonic()
    program = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", *command, "--folder", str(folder)]
    agent = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        account = Lab.wait_for(lambda: server.get("/machines")["items"], "the machine")[0]["account_id"]
        server.patch(f"/accounts/{account}", {"config": {"same_folders": True}})
        took = _until_first_step(lambda: _log(folder / "sessions"), began)
        say(f"joined: {took:.1f} s")
        server.client.post(f"/jobs/{job}:cancel")
        leave = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "leave", "--folder", str(folder)]
        subprocess.run(leave, check=True, timeout=PATIENCE_S, capture_output=True)
    finally:
        agent.kill()
        agent.wait()
    return took


def _log(sessions: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sessions.glob("*/output.log"))


def _here(server: Lab, model: Path, data: str) -> float:
    before = set(server.data.glob("sessions/*"))
    began = time.monotonic()
    job = _submit(server, model, data, "local")

    def log() -> str:
        new = set(server.data.glob("sessions/*")) - before
        return "".join(
            (path / "output.log").read_text(errors="replace") for path in new if (path / "output.log").exists()
        )

    took = _until_first_step(log, began)
    say(f"here: {took:.1f} s")
    server.client.post(f"/jobs/{job}:cancel")
    server.wait_for(lambda: not server.workers(), "the worker's end", PATIENCE_S, 0.2)
    return took
