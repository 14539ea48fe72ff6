"""Measures the share of useful time when machines are killed at random.

    python -m benchmarks.goodput --json

A real CPU training runs through a real server while its workers are killed with SIGKILL at exponentially distributed
times (seeded). Useful time is the time of steps that count. The ledger lists all other time and adds up to the wall
clock from submit to the finished job: `start_up` (boot, fetching, imports, loading the model), `restore`, `train`,
`save_stall` (training waiting for a save), `lost_work` (steps repeated after a kill), `idle` (between two sessions,
exporting, last messages).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import finished, job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama

START_UP = ("boot", "download", "load")


def main() -> int:
    """Run and print the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--mtbf", type=float, default=40.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goodput-") as temporary:
        result = measure(Path(temporary), options.steps, options.mtbf, random.Random(options.seed))
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0


def measure(folder: Path, steps: int, mtbf_s: float, chance: random.Random) -> dict[str, Any]:
    """One job from submit to adapter with random kills."""
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl", 400)
    settings = {"allowed_folders": json.dumps([str(folder)]), "offline": True, "mtbf_s": mtbf_s, "report_every_s": 2}
    with lab(folder / "lab", **settings, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        changes = {"max_steps": steps, "eval_steps": steps, "val_set_size": 0.0, "checkpoint": {"max_interval_s": 600}}
        file = job_file(model, server.upload(rows), "lora") | changes
        began = time.monotonic()
        job = server.post("/jobs", file)["id"]
        kills = under_fire(server, job, mtbf_s, chance)
        wall = time.monotonic() - began
        return ledger(server, job, wall) | {"kills": kills, "steps": steps, "wall_s": round(wall, 1), "mtbf_s": mtbf_s}


def under_fire(server: Lab, job: str, mtbf_s: float, chance: random.Random) -> int:
    """Kill the worker at exponential intervals until the job is done. Returns the number of kills."""
    kills, due = 0, time.monotonic() + chance.expovariate(1 / mtbf_s)
    while not finished(server, job):
        time.sleep(0.05)
        workers = server.workers()
        if time.monotonic() >= due and workers:
            os.kill(next(iter(workers.values())), signal.SIGKILL)
            kills, due = kills + 1, time.monotonic() + chance.expovariate(1 / mtbf_s)
            say(f"kill {kills} at step {server.job(job)['step']}")
    return kills


def ledger(server: Lab, job: str, wall_s: float) -> dict[str, Any]:
    """Shares of the wall clock, from the sessions' own ledgers."""
    sessions = sorted(server.get(f"/jobs/{job}/sessions")["items"], key=lambda s: s["started_at"] or "")
    spent: dict[str, float] = {}
    for session in sessions:
        for phase, seconds in session["ledger"].items():
            spent[phase] = spent.get(phase, 0.0) + seconds
    timed = [p["value"] for p in server.get(f"/jobs/{job}/metrics", name="step_seconds")["items"]]
    lost = server.job(job)["steps_repeated"] * statistics.median(timed)
    shares = {
        "start_up": sum(spent.get(p, 0.0) for p in START_UP),
        "restore": spent.get("restore", 0.0),
        "train": spent.get("train", 0.0) + spent.get("eval", 0.0) - lost,
        "save_stall": spent.get("save", 0.0),
        "lost_work": lost,
    }
    shares["idle"] = wall_s - sum(shares.values())
    train = shares["train"] + lost
    return {
        "goodput": round(shares["train"] / wall_s, 4),
        "ledger": {name: round(seconds / wall_s, 4) for name, seconds in shares.items()},
        "save_stall_of_training": round(shares["save_stall"] / train, 5),
        "steps_repeated": server.job(job)["steps_repeated"],
        "sessions": len(sessions),
    }


if __name__ == "__main__":
    sys.exit(main())
