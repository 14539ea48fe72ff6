"""The processes of one session on a machine with several GPUs.

This process leads. One follower runs for each further GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.agent.hardware import only_gpu, probe
from worker.agent.limits import Part
from worker.shared import causes
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Origin
from worker.shared.process import free_address, tied
from worker.training.interface import Hooks, TrainingJob, UnfitMachineError
from worker.training.ranks import Group, Team, world_size

GOODBYE_S = 30.0
OWN_WORDS_S = 5.0
"""Time for this process to report an error itself. An error of one process usually ends all of them."""


@contextlib.contextmanager
def group_for(job: TrainingJob, hooks: Hooks, processes: int | None = None) -> Iterator[Group]:
    """The group that this session trains in. Its other processes run inside the block.

    It has as many `processes` as given, else as the machine's GPUs allow. If a follower ends unexpectedly, the session
    ends too, because the others would wait forever for its gradients. Raises `UnfitMachineError` if the waiting process
    notices that.
    """
    hardware = probe()
    world = processes or world_size(job.spec, hardware)
    if world == 1:
        yield Group()
        return
    hooks.begins(Part.GROUP)
    address = free_address()
    followers = [_follow(job, rank, world, address) for rank in range(1, world)]
    done = threading.Event()
    for follower in followers:
        threading.Thread(target=_watch, args=(follower, done, hooks), daemon=True).start()
    try:
        with team(0, world, address, job.spec.seed, hardware.device) as group:
            yield group
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if gone := next((follower for follower in followers if follower.process.poll()), None):
            raise UnfitMachineError(gone.last_words, causes.GPUS, has_remedy=False) from error
        raise
    finally:
        done.set()
        for follower in followers:
            _part_with(follower.process)


@contextlib.contextmanager
def team(rank: int, world: int, address: str, seed: int, device: str) -> Iterator[Group]:
    """This process as one of several. Each sees its own GPU as the first."""
    group = Team(rank, world, address, seed, torch.device(device, 0) if device == "cuda" else torch.device("cpu"))
    try:
        yield group
    finally:
        group.leave()


def job_json(job: TrainingJob) -> dict[str, Any]:
    """The data that a follower needs."""
    return {
        "job": job.job,
        "fence": job.fence,
        "spec": job.spec.model_dump(mode="json"),
        "datasets": [str(path) for path in job.datasets],
        "resume": str(job.resume) if job.resume else None,
        "base_folder": str(job.base_folder) if job.base_folder else None,
        "origin": job.origin.model_dump() if job.origin else None,
        "trust_remote_code": job.trust_remote_code,
    }


def job_of(told: dict[str, Any], work_dir: Path) -> TrainingJob:
    """The inverse of `job_json`."""
    return TrainingJob(
        job=told["job"],
        fence=told["fence"],
        spec=JobSpec.model_validate(told["spec"]),
        datasets=tuple(map(Path, told["datasets"])),
        resume=Path(told["resume"]) if told["resume"] else None,
        base_folder=Path(told["base_folder"]) if told["base_folder"] else None,
        origin=Origin.model_validate(told["origin"]) if told["origin"] else None,
        work_dir=work_dir,
        trust_remote_code=told["trust_remote_code"],
    )


@dataclass(frozen=True)
class Follower:
    """The process for another GPU, and the file with its output."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def last_words(self) -> str:
        """How it ended, in one sentence."""
        lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
        return (
            f"the process for another GPU of this machine ended with code {self.process.returncode}: {lines[-1][:500]}"
        )


def _follow(job: TrainingJob, rank: int, world: int, address: str) -> Follower:
    home = job.work_dir / f"rank-{rank}"
    home.mkdir(exist_ok=True)
    (home / "job.json").write_text(json.dumps(job_json(job)))
    command = [sys.executable, "-m", "worker.training.gpu_follower", str(home), str(rank), str(world), address]
    output = home / "output.log"
    with output.open("ab") as log:
        process = subprocess.Popen(
            tied(command), env=os.environ | only_gpu(rank), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    return Follower(process, output)


def _watch(follower: Follower, done: threading.Event, hooks: Hooks) -> None:
    if follower.process.wait() and not done.wait(OWN_WORDS_S):
        hooks.lost(follower.last_words)


def _part_with(follower: subprocess.Popen[bytes]) -> None:
    try:
        follower.wait(GOODBYE_S)
    except subprocess.TimeoutExpired:
        follower.kill()
        follower.wait()
