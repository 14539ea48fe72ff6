"""Minutes of random faults, after which no job may be stuck and equal jobs must have equal results.

    python -m benchmarks.soak --minutes 10 --json

Several equal jobs are always running on a real server with two machines. At exponentially distributed times (seeded) a
worker is killed, told to leave or frozen for a while, the server is killed and restarted, or a job is paused and
resumed. Then the faults stop, and every submitted job has to end in the same adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama

AT_ONCE, STEPS = 4, 200
FROZEN_S = 3.0
FINAL = ("succeeded", "failed", "cancelled")
CALM_S = 900.0
"""Remaining jobs must end within this time after the faults have stopped."""


class Fire:
    """The faults, each counted by name."""

    def __init__(self, server: Lab, chance: random.Random) -> None:
        self._server, self._chance = server, chance
        self.counts: Counter[str] = Counter()
        self._faults: list[Callable[[], None]] = [
            *[self.kill_worker] * 4,
            self.drain_worker,
            self.freeze_worker,
            self.kill_server,
            self.kill_both,
            self.pause_and_resume,
        ]

    def strike(self) -> None:
        """Cause one random fault."""
        fault = self._chance.choice(self._faults)
        fault()
        self.counts[fault.__name__] += 1

    def _signal(self, *numbers: int) -> None:
        workers = sorted(self._server.workers().items())
        if workers:
            _, pid = self._chance.choice(workers)
            for number in numbers:
                os.kill(pid, number)

    def kill_worker(self) -> None:
        self._signal(signal.SIGKILL)

    def drain_worker(self) -> None:
        self._signal(signal.SIGTERM)

    def freeze_worker(self) -> None:
        workers = sorted(self._server.workers().items())
        if workers:
            _, pid = self._chance.choice(workers)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(FROZEN_S)
            os.kill(pid, signal.SIGCONT)

    def kill_server(self) -> None:
        self._server.kill()
        self._server.up()

    def kill_both(self) -> None:
        self._signal(signal.SIGKILL)
        self.kill_server()

    def pause_and_resume(self) -> None:
        running = [j for j in jobs(self._server) if j["state"] not in FINAL]
        if running:
            job = self._chance.choice(running)["id"]
            for verb in ("pause", "resume"):
                self._server.client.post(f"/jobs/{job}:{verb}")


def jobs(server: Lab) -> list[dict[str, Any]]:
    """All jobs."""
    return server.get("/jobs", limit=200)["items"]


def main() -> int:
    """Run and print the result. Exit code 1 if a job is stuck, failed or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--mean", type=float, default=12.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        result = soak(Path(temporary), 60 * options.minutes, options.mean, random.Random(options.seed))
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0 if result["stuck"] == result["failed"] == 0 and result["different_adapters"] <= 1 else 1


def soak(folder: Path, seconds: float, mean_s: float, chance: random.Random) -> dict[str, Any]:
    """Faults for `seconds`, then none until every job has ended."""
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(folder)]), "offline": True, "report_every_s": 1}
    with lab(folder / "lab", **settings, local_slots=2, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        file = job_file(model, server.upload(rows), "lora") | {"max_steps": STEPS}
        fire = Fire(server, chance)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(AT_ONCE - sum(j["state"] not in FINAL for j in jobs(server))):
                server.post("/jobs", file)
            time.sleep(min(chance.expovariate(1 / mean_s), max(0.0, end - time.monotonic())))
            fire.strike()
            say(f"{end - time.monotonic():6.0f} s left, {dict(Counter(j['state'] for j in jobs(server)))}")
        for job in jobs(server):
            if job["state"] == "paused":  # a resume request that the killed server did not receive
                server.post(f"/jobs/{job['id']}:resume")
        return verdict(server, fire)


def verdict(server: Lab, fire: Fire) -> dict[str, Any]:
    """Wait for the last job, then count."""
    until = time.monotonic() + CALM_S
    while time.monotonic() < until and any(j["state"] not in FINAL for j in jobs(server)):
        time.sleep(0.5)
    all_jobs = jobs(server)
    states = Counter(j["state"] for j in all_jobs)
    adapters = {j["adapter"]["sha256"] for j in all_jobs if j["adapter"]}
    return {
        "jobs": len(all_jobs),
        "stuck": sum(count for state, count in states.items() if state not in FINAL),
        "failed": states["failed"],
        "different_adapters": len(adapters),
        "faults": dict(fire.counts),
        "handoffs": sum(j["handoffs"] for j in all_jobs),
        "steps_repeated": sum(j["steps_repeated"] for j in all_jobs),
    }


if __name__ == "__main__":
    sys.exit(main())
