"""(a, e) The paper's job through a real server and real workers, killed once.

Measures step time, memory, start-up and saves.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
from pathlib import Path
from typing import Any

from benchmarks.goodput import START_UP
from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import finished, reached
from worker.agent.deadline import Cadence
from worker.shared.job_spec import CheckpointSpec

WARM_UP = 2
"""Steps of each session that are not counted. Kernels are compiled and memory is allocated in them."""
SAVE_EVERY_S = 8
"""Much more often than in a run of hours, to have several saves to time."""
MTBF_S = 6 * 3600.0
"""For the save interval of a run of hours: the server's default for an unknown provider."""


def measure(folder: Path, scale: Scale, backend: str, home: Path) -> dict[str, Any]:
    """One job from submit to adapter with a SIGKILL in the middle. The server's data are in `home`."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    settings = {"allowed_folders": json.dumps([str(folder)]), "offline": True, "report_every_s": 1, "reconcile_s": 0.5}
    with lab(home, **settings) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": worker_environment()}})
        changes = {"backend": backend, "max_steps": scale.timed_steps, "checkpoint": {"max_interval_s": SAVE_EVERY_S}}
        job = server.post("/jobs", scale.job(model, server.upload(data), **changes))["id"]
        lease = server.wait_for(lambda: reached(server, scale.timed_steps // 2), "half of the job", 300)
        os.kill(server.workers()[lease], signal.SIGKILL)
        server.wait_for(lambda: finished(server, job), "the job's end", 400, 0.2)
        return read(server, job)


def worker_environment() -> dict[str, str]:
    """Further environment variables of the workers: the memory limit of this process, and the packages' path."""
    names = ("WORKER_GPU_MEMORY_BYTES", "PYTHONPATH", "UNSLOTH_COMPILE_LOCATION")
    return {name: os.environ[name] for name in names if name in os.environ}


def read(server: Lab, job: str) -> dict[str, Any]:
    """Read everything over the public API."""
    sessions = sorted(server.get(f"/jobs/{job}/sessions")["items"], key=lambda s: s["started_at"] or "")
    checkpoints = server.get(f"/jobs/{job}/checkpoints")["items"]
    seconds = series(server, job, "step_seconds")
    peaks = series(server, job, "gpu_peak_bytes")
    ledgers = [{phase: round(value, 3) for phase, value in s["ledger"].items()} for s in sessions]
    first, last = sessions[0]["first_step"], sessions[-1]["first_step"]
    warm = {step for begin in (first, last) for step in range(begin + 1, begin + 1 + WARM_UP)}
    steady = [value for step, value in seconds.items() if step not in warm]
    return {
        "backend": sessions[0]["backend"],
        "step_seconds": [round(seconds[step], 4) for step in sorted(seconds)],
        "step_seconds_median": round(statistics.median(steady), 4),
        "peak_reserved_gib": round(max(peaks.values()) / 2**30, 3) if peaks else None,
        "losses": [value for _, value in sorted(series(server, job, "loss").items())],
        "batch_crc32": [value for _, value in sorted(series(server, job, "batch_crc32").items())],
        "sessions": [
            {
                "first_step": s["first_step"],
                "ended": s["outcome"],
                "fidelity": s["fidelity"],
                "ledger": ledger,
            }
            for s, ledger in zip(sessions, ledgers, strict=True)
        ],
        "start_to_first_step_s": {
            "cold": round(_start_up(ledgers[0]) + seconds[first + 1], 1),
            "warm": round(_start_up(ledgers[-1]) + seconds[last + 1], 1),
        },
        "restore_s": ledgers[-1].get("restore"),
        "save": _saving(ledgers, [c for c in checkpoints if c["state"] in ("committed", "pruned")]),
        "checkpoints": [{"step": c["step"], "bytes": c["size"]} for c in checkpoints],
    }


def _start_up(ledger: dict[str, float]) -> float:
    return sum(ledger.get(phase, 0.0) for phase in (*START_UP, "restore"))


def _saving(ledgers: list[dict[str, float]], saved: list[dict[str, Any]]) -> dict[str, float]:
    """The time that training waited for one save, including the first ones, and the total over hours."""
    stall = sum(ledger.get("save", 0.0) for ledger in ledgers) / max(1, len(saved))
    cadence = Cadence(MTBF_S, CheckpointSpec().max_interval_s)
    cadence.record_stall(stall)
    return {
        "stall_s": round(stall, 4),
        "interval_s": round(cadence.interval_s, 1),
        "share_of_training": round(stall / cadence.interval_s, 5),
    }


def series(server: Lab, job: str, name: str) -> dict[int, float]:
    """One metric by step."""
    return {p["step"]: p["value"] for p in server.get(f"/jobs/{job}/metrics", name=name)["items"]}
