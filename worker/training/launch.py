"""The processes of one session on a machine with several GPUs: this one leads, one more for each further GPU follows."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from worker.hardware import probe
from worker.protocol import JobSpec, Origin
from worker.training.job import TrainingJob
from worker.training.ranks import Group, Team, world_size

GOODBYE_S = 30.0


@contextlib.contextmanager
def group_for(job: TrainingJob) -> Iterator[Group]:
    """The group that this session trains in, with its other processes running inside the block.

    A follower that dies takes the session with it: the others would wait for its gradients for ever. To the server that is
    a lost session, and the job goes on from its last checkpoint.
    """
    hardware = probe()
    world = world_size(job.spec, hardware)
    if world == 1:
        yield Group()
        return
    address = _free_address()
    followers = [_follow(job, rank, world, address) for rank in range(1, world)]
    done = threading.Event()
    for follower in followers:
        threading.Thread(target=_watch, args=(follower, done), daemon=True).start()
    try:
        with team(0, world, address, job.spec.seed, hardware.device) as group:
            yield group
    finally:
        done.set()
        for follower in followers:
            _part_with(follower)


@contextlib.contextmanager
def team(rank: int, world: int, address: str, seed: int, device: str) -> Iterator[Group]:
    """This process as one of several; each sees its own GPU as the first."""
    group = Team(rank, world, address, seed, torch.device(device, 0) if device == "cuda" else torch.device("cpu"))
    try:
        yield group
    finally:
        group.leave()


def job_json(job: TrainingJob) -> dict[str, Any]:
    """What a follower has to know."""
    return {
        "job": job.job,
        "fence": job.fence,
        "spec": job.spec.model_dump(mode="json"),
        "datasets": [str(path) for path in job.datasets],
        "resume": str(job.resume) if job.resume else None,
        "origin": job.origin.model_dump() if job.origin else None,
        "trust_remote_code": job.trust_remote_code,
    }


def job_of(told: dict[str, Any], work_dir: Path) -> TrainingJob:
    """The way back."""
    return TrainingJob(
        job=told["job"],
        fence=told["fence"],
        spec=JobSpec.model_validate(told["spec"]),
        datasets=tuple(map(Path, told["datasets"])),
        resume=Path(told["resume"]) if told["resume"] else None,
        origin=Origin.model_validate(told["origin"]) if told["origin"] else None,
        work_dir=work_dir,
        trust_remote_code=told["trust_remote_code"],
    )


def _follow(job: TrainingJob, rank: int, world: int, address: str) -> subprocess.Popen[bytes]:
    home = job.work_dir / f"rank-{rank}"
    home.mkdir(exist_ok=True)
    (home / "job.json").write_text(json.dumps(job_json(job)))
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible[rank] if len(visible) > rank else str(rank)}
    command = [sys.executable, "-m", "worker.training.follower", str(home), str(rank), str(world), address]
    with (home / "output.log").open("ab") as log:
        # Its standard input ends when this process does, however that happens.
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)


def _watch(follower: subprocess.Popen[bytes], done: threading.Event) -> None:
    if follower.wait() and not done.is_set():
        print(f"a process of this session ended with code {follower.returncode}", file=sys.stderr, flush=True)
        os._exit(1)


def _part_with(follower: subprocess.Popen[bytes]) -> None:
    assert follower.stdin is not None
    try:
        follower.wait(GOODBYE_S)
    except subprocess.TimeoutExpired:
        follower.kill()
    follower.stdin.close()
    follower.wait()


def _free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return "{}:{}".format(*found.getsockname())
