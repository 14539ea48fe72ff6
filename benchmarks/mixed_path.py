"""One job over three kinds of machines, each cut: an emulated Kaggle kernel, an executed notebook, this computer.

`benchmarks.exact_resume --path mixed` compares `train` with an uninterrupted run on this computer.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks import tiny_job
from benchmarks.lab import Lab, lab
from tests.emulators.kaggle import KaggleEmulator, Kernel, Person
from worker.shared.process import tied

PATIENCE_S = 240.0
TOKEN = "KGAT_emulated"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Candidate(Protocol):
    """A kind of machine to which the job can be moved, and on which it is watched and lost."""

    name: str

    def open(self, server: Lab, job: str) -> None: ...
    def last_step(self, server: Lab) -> int: ...
    def cut(self, server: Lab) -> None:
        """End the machine without warning. No other machine of this kind starts."""
        ...


class Kaggle:
    """A kernel whose worker cannot call the server. Its outputs are collected."""

    name = "kaggle"

    def __init__(self, emulator: KaggleEmulator) -> None:
        self._emulator, self._account = emulator, ""

    def open(self, server: Lab, job: str) -> None:
        if not self._account:
            account_request = {
                "provider": "kaggle",
                "name": "emulated",
                "config": {"username": "alice"},
                "credentials": TOKEN,
            }
            self._account = server.post("/accounts", account_request)["id"]
        server.patch(f"/accounts/{self._account}", {"paused": False})

    def last_step(self, server: Lab) -> int:
        kernel = self._kernel()
        lines = [event["data"] for event in kernel.events] if kernel is not None else []
        return _last_step("".join(lines))

    def cut(self, server: Lab) -> None:
        server.patch(f"/accounts/{self._account}", {"paused": True})
        kernel = self._kernel()
        if kernel is not None:
            self._emulator.kill(kernel.slug, outputs=True)

    def _kernel(self) -> Kernel | None:
        return next((k for k in list(self._emulator.world.kernels.values()) if k.is_live), None)


class Notebook:
    """A generated notebook in a real kernel. Its machine disappears with all files."""

    name = "notebook"

    def __init__(self, folder: Path) -> None:
        self._folder, self._client = folder, None
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, server: Lab, job: str) -> None:
        path = self._folder / f"{len(list(self._folder.iterdir()))}.ipynb"
        path.write_text(json.dumps(server.post(f"/jobs/{job}:notebook?reach=http")["notebook"]))
        command = [sys.executable, "-m", "tests.notebook.execute", str(path)]
        self._client = psutil.Popen(tied(command), env=os.environ | ONE_THREAD, stderr=subprocess.DEVNULL)

    def last_step(self, server: Lab) -> int:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._processes():
                command = process.cmdline()
                if "worker.notebook.attended" in command:
                    return _last_step((Path(command[-1]).parent / "output.log").read_text(errors="replace"))
        return -1

    def cut(self, server: Lab) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._client is not None
        self._client.wait()

    def _processes(self) -> list[psutil.Process]:
        assert self._client is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._client, *self._client.children(recursive=True)]
        return []


class ThisComputer:
    """A worker process of the server's own pool."""

    name = "this computer"

    def open(self, server: Lab, job: str) -> None:
        pool = next(a["id"] for a in server.get("/accounts")["items"] if a["provider"] == "local")
        server.patch(f"/accounts/{pool}", {"config": {"slots": 1, "env": ONE_THREAD}})

    def last_step(self, server: Lab) -> int:
        return max((server.last_step(lease) for lease in server.workers()), default=-1)

    def cut(self, server: Lab) -> None:
        """Kill only the worker. The pool stays open, and the job continues there."""
        for process in server.workers().values():
            os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def server_beside(folder: Path, model: Path, kaggle: KaggleEmulator) -> Iterator[Lab]:
    """A server whose own pool is closed, beside an emulated Kaggle."""
    settings: dict[str, Any] = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "local_slots": 0}
    times = {"report_every_s": 0.5, "reconcile_s": 0.5, "lease_s": 20}
    with lab(folder / "lab", **settings, **times, kaggle_endpoint=kaggle.endpoint) as server:
        yield server


def train(folder: Path, model: Path, data: Path, kills: int, adapter: str, seed: int) -> tiny_job.Run:
    """One run from submit to adapter, cut `kills` times on alternating machines, finished on this computer."""
    people = [Person(name="alice", token=TOKEN)]
    with (
        KaggleEmulator(folder / "kaggle", people, environment=ONE_THREAD) as kaggle,
        server_beside(folder, model, kaggle) as server,
    ):
        job = server.post("/jobs", tiny_job.job_file(model, server.upload(data), adapter))["id"]
        places: cycle[Candidate] = cycle([Kaggle(kaggle), Notebook(folder / "notebooks"), ThisComputer()])
        chance = random.Random(f"{seed}-{kills}")
        for step, place in zip(sorted(chance.sample(range(5, tiny_job.STEPS - 5), kills)), places, strict=False):
            cut_once(server, job, place, step)
        ThisComputer().open(server, job)
        server.wait_for(lambda: tiny_job.finished(server, job), "the job's end", 600, 0.2)
        return tiny_job.read_result(server, job, kills)


def cut_once(server: Lab, job: str, place: Candidate, step: int) -> None:
    """Move a waiting job to a machine of this kind, and end the machine at or after this step."""
    before = _ended(server, job)
    place.open(server, job)
    server.wait_for(lambda: place.last_step(server) >= step, f"step {step} on {place.name}", PATIENCE_S, 0.02)
    tiny_job.say(f"    cut at step {place.last_step(server)} on {place.name}")
    place.cut(server)
    server.wait_for(lambda: _ended(server, job) > before, "the session's end", PATIENCE_S, 0.2)


def _ended(server: Lab, job: str) -> int:
    return sum(s["outcome"] is not None for s in server.get(f"/jobs/{job}/sessions")["items"])


def _last_step(text: str) -> int:
    steps = [line.split()[1] for line in text.splitlines() if line.startswith("step ")]
    return int(steps[-1]) if steps else -1
