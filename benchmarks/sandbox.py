"""Cuts on emulated Kaggle and Drive: the same run as on this computer, in kernels that cannot call the server."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab
from benchmarks.tiny_job import say
from orchestrator.providers.kaggle.launch import slug_of
from tests.emulators.drive import Drive
from tests.emulators.kaggle import KaggleEmulator, Kernel, Person
from tests.images import place

SESSION_S = 240.0
"""With a session of this length, the upload grants made in advance allow a save every 4 s."""

PATIENCE_S = 400.0


@dataclass(frozen=True)
class Sandbox:
    """Both emulators. `settings` point a server at them. `token` is that of the Kaggle account."""

    token: str
    kaggle: KaggleEmulator
    drive: Drive

    @property
    def settings(self) -> dict[str, str]:
        return {"kaggle_endpoint": self.kaggle.endpoint, "drive_endpoint": self.drive.url, "local_slots": "0"}

    def move_in(self, server: Lab) -> None:
        """Store new files in Drive and run jobs on one Kaggle account."""
        credentials = json.dumps(self.drive.authorized_user())
        server.put("/stores/drive", {"credentials": credentials})
        config = {"username": "alice", "slots": 1, "session_s": SESSION_S}
        server.post("/accounts", {"provider": "kaggle", "credentials": self.token, "config": config})

    def running(self) -> list[Kernel]:
        """Kernels with a running process."""
        return [k for k in list(self.kaggle.world.kernels.values()) if k.status == "RUNNING" and k.pid is not None]

    def cut_at_random(self, server: Lab, job: str, steps: list[int], chance: random.Random) -> None:
        """Kill the kernel at these steps, with or without its outputs. Every second time the server dies first.

        After a cut the next session is a new kernel, so a kernel is never cut twice.
        """
        cut: set[str] = set()
        for number, step in enumerate(steps, 1):
            kernel = server.wait_for(lambda step=step: self._reached(step, cut), f"step {step}", PATIENCE_S)
            outputs = chance.random() < 0.5
            server_dies = number % 2 == 0
            how = f"{'with' if outputs else 'without'} its outputs{', the server down' if server_dies else ''}"
            print(f"    cut {number} at step {last_step(kernel)}: killed {how}", file=sys.stderr, flush=True)
            if server_dies:
                server.kill()
            self.kaggle.kill(kernel.slug, outputs=outputs)
            cut.add(kernel.slug)
            if server_dies:
                server.up()
            server.wait_for(lambda slug=kernel.slug: self._settled(server, job, slug), "the hand-over", PATIENCE_S)
            if server.job(job)["state"] == "succeeded":
                return

    def _reached(self, step: int, cut: set[str]) -> Kernel | None:
        return next((k for k in self.running() if k.slug not in cut and last_step(k) >= step), None)

    @staticmethod
    def _settled(server: Lab, job: str, slug: str) -> bool:
        shown: dict[str, Any] = server.job(job)
        return shown["session"] is None or slug_of(shown["session"]["id"]) != slug


def last_step(kernel: Kernel) -> int:
    """The newest step that a kernel has printed."""
    for event in reversed(list(kernel.events)):
        words = event["data"].split()
        if len(words) > 1 and words[0] == "step":
            return int(words[1])
    return -1


@contextmanager
def sandbox(folder: Path, token: str = "KGAT_alice") -> Iterator[Sandbox]:
    """Running emulators with their files in `folder`."""
    machine = place("kaggle-gpu")
    say(f"  kernels have {machine.words}")
    # One thread, as on this computer: more would be slower on a shared machine, and speed is not measured here.
    environment = {**machine.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    people = [Person(name="alice", token=token)]
    with (
        KaggleEmulator(folder / "kaggle", people, python=machine.python, environment=environment) as kaggle,
        Drive(folder / "drive") as drive,
    ):
        yield Sandbox(token, kaggle, drive)
