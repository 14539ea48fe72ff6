"""How fast the server is, without any training.

    python -m benchmarks.orchestrator --json

`*_ms` and `*_s` of starting things are measured on real worker processes; rates over HTTP with coroutines that speak
the worker API from a second process; claims through the dispatcher itself on databases of several sizes. SQLite with
`synchronous=FULL` throughout. Times on shared cores are noisy: CPU per heartbeat is the figure that travels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.claims import claims
from benchmarks.lab import Lab, lab
from benchmarks.over_http import Load, measure, spread
from benchmarks.tiny_job import job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama

STARTS, CUTS = 15, 6


def main() -> int:
    """Run every part and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", default="10000,100000,1000000", help="table sizes for the claims")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as temporary:
        folder = Path(temporary)
        result = {
            **starts(folder / "starts"),
            **cuts(folder / "cuts"),
            **_over_http(folder / "http"),
            "durable_claims_per_second": {
                rows: claims(folder / f"claims-{rows}", rows) for rows in map(int, options.rows.split(","))
            },
            "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        }
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0


# --- real worker processes -------------------------------------------------------------------------------


def _lab(folder: Path) -> Any:
    folder.mkdir()
    model = make_tiny_llama(folder / "model")
    return model, lab(folder, allowed_folders=json.dumps([str(model.parent)]), offline=True, report_every_s=5)


def _began(server: Lab, lease: str) -> float | None:
    """The monotonic time of a worker's first statement. All processes of a computer share this clock."""
    log = server.data / "sessions" / lease / "output.log"
    first = log.read_text().partition("\n")[0] if log.exists() else ""
    return float(first.split()[3]) if first.startswith("worker started at") and first.endswith(")") else None


def _new_worker(server: Lab, known: set[str]) -> tuple[str, float]:
    def find_worker() -> tuple[str, float] | None:
        for home in (server.data / "sessions").glob("lease-*"):
            if home.name not in known and (began := _began(server, home.name)) is not None:
                return home.name, began
        return None

    lease, began = server.wait_for(find_worker, "a worker", every_s=0.002)
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
            sent = time.monotonic()
            job = server.post("/jobs", job_file(model, data, "lora"))["id"]
            lease, began = _new_worker(server, known)
            took.append(1e3 * (began - sent))
            server.wait_for(lambda job=job: server.job(job)["state"] == "running", "the start")
            server.post(f"/jobs/{job}:cancel")
            os.kill(server.workers()[lease], signal.SIGKILL)
            server.wait_for(lambda job=job: server.job(job)["state"] == "cancelled", "the end")
    return {"submit_to_start_ms": spread(took)}


def cuts(folder: Path) -> dict[str, Any]:
    """From a release received by the server, or a SIGKILL, to the first statement of the next worker process."""
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
            sent = time.monotonic()
            how = signal.SIGTERM if number % 2 else signal.SIGKILL
            os.kill(server.workers()[lease], how)
            lease, began = _new_worker(server, known)
            if how is signal.SIGKILL:
                kills.append(began - sent)
            else:
                received = [
                    e["at"] for e in server.get(f"/jobs/{job}/events", limit=1000)["items"] if e["kind"] == "job.queued"
                ]
                goodbyes.append(1e3 * (began + offset - datetime.fromisoformat(received[-1]).timestamp()))
        server.post(f"/jobs/{job}:cancel")
    return {"redispatch_after_goodbye_ms": spread(goodbyes), "redispatch_after_kill_s": spread(kills)}


def _over_http(folder: Path) -> dict[str, Any]:
    say("jobs and heartbeats over HTTP ...")
    return measure(folder, Load())


if __name__ == "__main__":
    sys.exit(main())
