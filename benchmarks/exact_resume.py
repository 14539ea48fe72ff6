"""Tests the main promise: the same job, uninterrupted and cut at random steps, must end in the same bytes.

    python -m benchmarks.exact_resume --kills 0,1,5 [--adapter lora|qlora] [--path local|sandbox|mixed] --json

A generated tiny Llama with random weights is trained through a real server and real worker processes. Cuts are SIGKILLs
of the worker, planned hand-offs (SIGTERM), and every third time a SIGKILL of worker and server together. With `--path
sandbox` the machines are Kaggle kernels and the checkpoints are in Google Drive, both emulated. Kernels are then killed
with or without their outputs, every second time while the server is down.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import STEPS, Run, finished, job_file, reached, read_result, say, write_rows
from benchmarks.tiny_model import make_tiny_llama


def main() -> int:
    """Run the comparison and print it. Exit code 1 if the bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", default="0,1,5", help="comma-separated numbers of cuts")
    parser.add_argument("--adapter", choices=("lora", "qlora"), default="lora")
    parser.add_argument(
        "--path",
        choices=("local", "sandbox", "mixed"),
        default="local",
        help="sandbox: over emulated Kaggle and Drive; mixed: over three kinds of machine",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cuts, not of the training")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exact-resume-") as temporary:
        folder = Path(temporary)
        model, data = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
        runs = []
        counts = list(map(int, options.kills.split(",")))
        if options.path == "mixed" and 0 not in counts:
            counts.insert(0, 0)  # the reference for the mixed runs
        for kills in counts:
            say(f"{options.adapter}: {kills} cuts ...")
            way = _way(options.path, kills)
            runs.append(way(folder / f"kills-{kills}", model, data, kills, options.adapter, options.seed))
            say(f"  adapter {runs[-1].adapter_sha256[:16]}  state {runs[-1].state_sha256[:16]}")
    equal = len({tuple(list(asdict(r).values())[1:]) for r in runs}) == 1
    result = {"runs": [asdict(r) for r in runs], "bitwise_equal": equal}
    print(json.dumps(result) if options.json else f"bitwise equal: {equal}")
    return 0 if equal else 1


def _way(path: str, kills: int) -> Callable[..., Run]:
    """The function that trains one run. On the mixed path the uninterrupted run stays on this computer."""
    if path == "mixed" and kills:
        from benchmarks import mixed_path  # imports packages of the tests

        return mixed_path.train
    return train_far if path == "sandbox" else train


def train(folder: Path, model: Path, data: Path, kills: int, adapter: str, seed: int) -> Run:
    """One run from submit to adapter, cut `kills` times."""
    settings = {
        "allowed_folders": json.dumps([str(model.parent)]),
        "offline": True,
        "report_every_s": 1,
        "reconcile_s": 0.5,
    }
    with lab(folder, **settings) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        # One thread: on a shared machine more would be slower, and speed is not measured here.
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        job = server.post("/jobs", job_file(model, server.upload(data), adapter))["id"]
        cut_at_random(server, job, kills, random.Random(f"{seed}-{kills}"))
        server.wait_for(lambda: finished(server, job), "the job's end", 600, 0.2)
        return read_result(server, job, kills)


def train_far(folder: Path, model: Path, data: Path, kills: int, adapter: str, seed: int) -> Run:
    """The same over emulated Kaggle and Drive."""
    from benchmarks.sandbox import sandbox  # only this path needs both client libraries

    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "report_every_s": 1}
    with sandbox(folder / "outside") as outside, lab(folder, **settings, **outside.settings) as server:
        outside.move_in(server)
        job = server.post("/jobs", job_file(model, server.upload(data), adapter))["id"]
        chance = random.Random(f"{seed}-{kills}")
        outside.cut_at_random(server, job, sorted(chance.sample(range(1, STEPS), kills)), chance)
        server.wait_for(lambda: finished(server, job), "the job's end", 600, 0.2)
        return read_result(server, job, kills)


def cut_at_random(server: Lab, job: str, kills: int, chance: random.Random) -> None:
    """Cut at random steps, in order, whatever the worker is doing at that moment."""
    for number, step in enumerate(sorted(chance.sample(range(1, STEPS), kills)), 1):
        lease = server.wait_for(lambda step=step: reached(server, step), f"step {step}", 300)
        how = chance.choice([signal.SIGKILL, signal.SIGTERM])
        together = number % 3 == 0
        say(f"    cut {number} at step {server.last_step(lease)}: {how.name}{' and the server' if together else ''}")
        os.kill(server.workers()[lease], how)
        if together:
            server.kill()
            server.up()
        server.wait_for(lambda lease=lease: lease not in server.workers(), "the worker's end", 120)
        if finished(server, job):
            return


if __name__ == "__main__":
    sys.exit(main())
