"""The machines on which the figures are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.emulators.kaggle import KaggleEmulator, Kernel, Person
from tests.images import FOLDER, NAMES, Image, load

ENDED = ("succeeded", "failed", "cancelled")
PATIENCE_S = 900.0
TOKEN = "KGAT_alice"


@dataclass(frozen=True)
class Shelf:
    """A folder with a tiny model and its rows."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @classmethod
    def fill(cls, folder: Path) -> Shelf:
        make_tiny_llama(folder / "model")
        write_rows(folder / "rows.jsonl")
        return cls(folder)


@dataclass(frozen=True)
class Desk:
    """A server whose only account is at an emulated Kaggle, and that Kaggle."""

    server: Lab
    kaggle: KaggleEmulator

    def set_account(self, **config: Any) -> None:
        """Change the account's settings."""
        accounts = self.server.get("/accounts")["items"]
        (mine,) = [one for one in accounts if one["provider"] == "kaggle"]
        self.server.patch(f"/accounts/{mine['id']}", {"config": {"username": "alice", **config}})

    def submit(self, file: dict[str, Any]) -> str:
        """Submit a job. Returns its id."""
        return self.server.post("/jobs", file)["id"]

    def wait(self, job: str) -> dict[str, Any]:
        """The job after it has ended in any way."""
        return self.server.wait_for(
            lambda: (shown := self.server.job(job))["state"] in ENDED and shown, "the job's end", PATIENCE_S, 0.2
        )

    def sessions(self, job: str) -> list[dict[str, Any]]:
        """The job's sessions, oldest first."""
        return sorted(self.server.get(f"/jobs/{job}/sessions")["items"], key=lambda session: session["id"])


def built() -> list[Image]:
    """The images that are built here."""
    return [image for name in NAMES if not (image := load(name)).problem]


def is_kaggles(image: Image) -> bool:
    """Whether its sessions are kernels. Otherwise they are notebook cells."""
    return image.name.startswith("kaggle")


@contextmanager
def desk(
    folder: Path, image: Image, allowed: Path, environment: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[Desk]:
    """Kaggle with the image's machines, and a server that may use the models in the folder `allowed`."""
    variables = image.variables | {"OMP_NUM_THREADS": "2", **(environment or {})}
    people = [Person(name="alice", token=TOKEN)]
    with (
        KaggleEmulator(folder / "kaggle", people, python=image.executable, environment=variables) as kaggle,
        server_for(folder / "lab", allowed, kaggle_endpoint=kaggle.endpoint, **settings) as server,
    ):
        account_request = {"provider": "kaggle", "config": {"username": "alice"}, "credentials": TOKEN}
        server.post("/accounts", account_request)
        yield Desk(server, kaggle)


def server_for(folder: Path, allowed: Path, **settings: Any) -> Any:
    """A server without machines of its own."""
    common = {"allowed_folders": json.dumps([str(allowed)]), "offline": True, "local_slots": 0}
    return lab(folder, **common | {"report_every_s": 1, "reconcile_s": 0.5} | settings)


def seconds_to(kernel: Kernel, step: int) -> float | None:
    """Seconds from the kernel's start to the log line of this step."""
    for event in kernel.events:
        if event["data"].startswith(f"step {step} "):
            return event["time"]
    return None


def nothing_built() -> Figure:
    """The message if no image is built."""
    return Figure(name="images", value=f"none in {FOLDER}: run `make images`", bar="built", ok=False)
