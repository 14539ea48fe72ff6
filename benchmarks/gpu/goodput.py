"""(f) Goodput of a small real model with random kills, and the best possible goodput.

Several jobs share each card, each with a worker of its own, so that ten kills hours apart in a job's life fit into
minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.goodput import START_UP
from benchmarks.gpu.models import Scale, small_model, write_prose
from benchmarks.gpu.orchestrated import series, worker_environment
from benchmarks.lab import Lab, lab

KILLS_SEED = 0
ENDLESS = 100_000
"""More steps than there is time for. The measurement ends with a pause, as a person would end it."""


@dataclass(frozen=True)
class UnderFire:
    """A job, and the address of its server."""

    server: Lab
    job: str


def measure(folder: Path, scale: Scale, gguf: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """Run jobs for `goodput_s` seconds while their workers are killed, or longer until `goodput_kills` kills.

    The kills are SIGKILLs at exponentially distributed times.
    """
    model = small_model(folder / "goodput", gguf, scale)
    data = write_prose(folder / "goodput" / "prose.jsonl", 120 if scale.tiny else 1200)
    count, mtbf_s = options.goodput_jobs, options.goodput_mtbf
    with contextlib.ExitStack() as stack:
        cards = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        servers = [stack.enter_context(_server(folder / "goodput" / f"lab-{c or 'cpu'}", c, options)) for c in cards]
        began = time.monotonic()
        jobs = [
            UnderFire(server, server.post("/jobs", _job(model, dataset, scale, number))["id"])
            for server in servers
            for dataset in [server.upload(data)]
            for number in range(count)
        ]
        kills = under_fire(jobs, mtbf_s, began + options.goodput_s, options.goodput_kills)
        wall = pause(jobs, began)
        summary = {"model": scale.small_name, "cards": len(cards), "jobs": len(jobs)}
        return summary | {"kills": kills, "mtbf_s": mtbf_s} | ledger(jobs, wall)


@contextlib.contextmanager
def _server(folder: Path, card: str, options: argparse.Namespace) -> Iterator[Lab]:
    settings: dict[str, Any] = {"allowed_folders": json.dumps([str(folder.parent)]), "mtbf_s": options.goodput_mtbf}
    with lab(folder, **settings, offline=True, report_every_s=1, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        environment = worker_environment() | {"CUDA_VISIBLE_DEVICES": card}
        server.patch(f"/accounts/{pool}", {"config": {"env": environment, "slots": options.goodput_jobs}})
        yield server


def under_fire(jobs: list[UnderFire], mtbf_s: float, until: float, least: int) -> int:
    """Kill workers at random, so that each job loses its own every `mtbf_s` on average. Returns the kills."""
    servers = list({id(job.server): job.server for job in jobs}.values())
    chance, kills = random.Random(KILLS_SEED), 0
    due = time.monotonic() + chance.expovariate(len(jobs) / mtbf_s)
    while kills < least or time.monotonic() < until:
        time.sleep(0.05)
        if time.monotonic() < due:
            continue
        if workers := [pid for server in servers for pid in server.workers().values()]:
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills, due = kills + 1, time.monotonic() + chance.expovariate(len(jobs) / mtbf_s)
    return kills


def pause(jobs: list[UnderFire], began: float) -> float:
    """Pause all jobs. Returns the wall-clock seconds of all jobs together."""
    for each in jobs:
        each.server.post(f"/jobs/{each.job}:pause")
    wall, left = 0.0, list(jobs)
    while left:
        for each in list(left):
            if each.server.job(each.job)["state"] == "paused":
                wall += time.monotonic() - began
                left.remove(each)
        time.sleep(0.05)
    return wall


def _job(model: Path, dataset: str, scale: Scale, number: int) -> dict[str, Any]:
    return {
        "name": f"under-fire-{number}",
        "base_model": str(model),
        "datasets": [{"path": dataset}],
        "backend": "hf",
        "adapter": "lora",
        "sequence_len": 64 if scale.tiny else 512,
        "global_batch_size": 8,
        "max_steps": ENDLESS,
        "learning_rate": 2e-4,
        "optimizer": "adamw_8bit",
    }


def ledger(jobs: list[UnderFire], wall_s: float) -> dict[str, Any]:
    """Where the wall clock of all jobs went. Useful are the seconds of steps that are saved in the end.

    `bound` is the goodput with the same kills and start-ups if saves and restores cost nothing and no step were lost.
    """
    spent: dict[str, float] = {}
    totals = {"sessions": 0, "steps": 0, "steps_repeated": 0}
    useful = 0.0
    for each in jobs:
        sessions = each.server.get(f"/jobs/{each.job}/sessions")["items"]
        for session in sessions:
            for phase, seconds in session["ledger"].items():
                spent[phase] = spent.get(phase, 0.0) + seconds
        state = each.server.job(each.job)
        safe = state["head"]["step"] if state["head"] else 0
        useful += sum(s for step, s in series(each.server, each.job, "step_seconds").items() if step <= safe)
        totals["sessions"] += len(sessions)
        totals["steps"] += safe
        totals["steps_repeated"] += state["steps_repeated"]
    start_up = sum(spent.get(phase, 0.0) for phase in START_UP)
    shares = {
        "train": useful,
        "start_up": start_up,
        "restore": spent.get("restore", 0.0),
        "save_stall": spent.get("save", 0.0),
        "lost_work": max(0.0, spent.get("train", 0.0) - useful),
    }
    shares["idle"] = wall_s - sum(shares.values())
    bound, goodput = 1.0 - start_up / wall_s, useful / wall_s
    return totals | {
        "wall_s": round(wall_s, 1),
        "step_seconds_mean": round(useful / max(1, totals["steps"]), 4),
        "start_up_s": round(start_up / totals["sessions"], 2),
        "goodput": round(goodput, 4),
        "bound": round(bound, 4),
        "of_bound": round(goodput / bound, 4),
        "ledger": {name: round(seconds / wall_s, 4) for name, seconds in shares.items()},
        "save_stall_of_training": round(shares["save_stall"] / max(1e-9, shares["train"] + shares["lost_work"]), 5),
    }
