"""(f) A real small model under fire: how much of the wall clock is training that counts, and how much could have been."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.goodput import START_UP
from benchmarks.gpu.models import Scale, small_model, write_prose
from benchmarks.gpu.orchestrated import series, worker_environment
from benchmarks.lab import Lab, lab

KILLS_SEED = 0
ENDLESS = 100_000
"""More steps than there is time for: the measurement ends by the clock."""


def measure(
    folder: Path, scale: Scale, backend: str, gguf: Path | None, limit_s: float, mtbf_s: float
) -> dict[str, Any]:
    """One job for `limit_s` seconds while its workers are killed with SIGKILL at exponentially distributed times."""
    model = small_model(folder / "goodput", gguf, scale)
    data = write_prose(folder / "goodput" / "prose.jsonl", 120 if scale.tiny else 1200)
    settings = {"allowed_folders": json.dumps([str(folder)]), "offline": True, "mtbf_s": mtbf_s, "report_every_s": 1}
    with lab(folder / "goodput" / "lab", **settings, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": worker_environment()}})
        began = time.monotonic()
        job = server.post("/jobs", _job(model, server.upload(data), scale, backend))["id"]
        kills = under_fire(server, mtbf_s, began + limit_s)
        wall = time.monotonic() - began
        return {"model": "SmolLM2-135M" if not scale.tiny else "tiny", "kills": kills, "mtbf_s": mtbf_s} | ledger(
            server, job, wall
        )


def under_fire(server: Lab, mtbf_s: float, until: float) -> int:
    """Kill whatever works at exponential intervals until that time; returns the number of kills."""
    chance = random.Random(KILLS_SEED)
    kills, due = 0, time.monotonic() + chance.expovariate(1 / mtbf_s)
    while time.monotonic() < until:
        time.sleep(0.05)
        workers = server.workers()
        if time.monotonic() >= due and workers:
            os.kill(next(iter(workers.values())), signal.SIGKILL)
            kills, due = kills + 1, time.monotonic() + chance.expovariate(1 / mtbf_s)
    return kills


def _job(model: Path, dataset: str, scale: Scale, backend: str) -> dict[str, Any]:
    return {
        "name": "under-fire",
        "base_model": str(model),
        "datasets": [{"path": dataset}],
        "backend": backend,
        "adapter": "lora",
        "sequence_len": 64 if scale.tiny else 512,
        "global_batch_size": 16,
        "max_steps": ENDLESS,
        "learning_rate": 2e-4,
        "optimizer": "adamw_8bit",
    }


def ledger(server: Lab, job: str, wall_s: float) -> dict[str, Any]:
    """Where the wall clock went. Useful is the time of as many steps as are safe at the end; `bound` is what the same kills and
    the same start-ups would have left to a run that saves for nothing, restores in no time and loses no step.
    """
    sessions = server.get(f"/jobs/{job}/sessions")["items"]
    spent: dict[str, float] = {}
    for session in sessions:
        for phase, seconds in session["ledger"].items():
            spent[phase] = spent.get(phase, 0.0) + seconds
    state = server.job(job)
    safe = state["head"]["step"] if state["head"] else 0
    step_s = statistics.median(series(server, job, "step_seconds").values())
    start_up = sum(spent.get(p, 0.0) for p in START_UP)
    shares = {
        "train": safe * step_s,
        "start_up": start_up,
        "restore": spent.get("restore", 0.0),
        "save_stall": spent.get("save", 0.0),
        "lost_work": (state["steps_repeated"] + state["step"] - safe) * step_s,
    }
    shares["idle"] = wall_s - sum(shares.values())
    bound = 1.0 - start_up / wall_s
    goodput = shares["train"] / wall_s
    return {
        "wall_s": round(wall_s, 1),
        "steps": safe,
        "steps_repeated": state["steps_repeated"],
        "sessions": len(sessions),
        "step_seconds_median": round(step_s, 4),
        "start_up_s": round(start_up / len(sessions), 2),
        "goodput": round(goodput, 4),
        "bound": round(bound, 4),
        "of_bound": round(goodput / bound, 4),
        "ledger": {name: round(seconds / wall_s, 4) for name, seconds in shares.items()},
        "save_stall_of_training": round(shares["save_stall"] / (shares["train"] + shares["lost_work"]), 5),
    }
