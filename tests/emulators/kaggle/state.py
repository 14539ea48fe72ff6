"""What the emulated service knows: people, their quota, blobs, datasets and kernels."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GPU_SESSIONS, CPU_SESSIONS = 2, 5
MAX_SESSION_S = 12 * 3600
TERMINAL = frozenset({"COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"})


class RefusedError(Exception):
    """An answer that is no success: HTTP status and the service's own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(kw_only=True)
class Person:
    """An account: `token` is sent as Bearer, `key` with the name as Basic."""

    name: str
    token: str = ""
    key: str = ""
    gpu_hours: float = 30.0
    used_s: float = 0.0
    phone_verified: bool = True
    revoked: bool = False


@dataclass(kw_only=True)
class Blob:
    """A file on its way up: `size` is what was announced."""

    owner: str
    name: str
    size: int
    path: Path


@dataclass(kw_only=True)
class Dataset:
    """A dataset's newest version; READY once its status was asked `polls_left` more times."""

    owner: str
    slug: str
    title: str
    private: bool
    folder: Path
    polls_left: int
    version: int = 1
    status: str = "BLOBS_RECEIVED"


@dataclass(kw_only=True)
class Kernel:
    """A script and its only run. `events` are `{stream_name, time, data}`; `changed` is notified with every one.

    `session` is the number of the run, which no answer tells. One that is `stuck` never ends by itself; one with
    `ignores_cancel`
    obeys no cancel.
    """

    id: int
    session: int
    owner: str
    slug: str
    title: str
    source: str
    gpu: bool
    machine_shape: str
    internet: bool
    private: bool
    datasets: list[str]
    kernels: list[str]
    timeout_s: float
    root: Path
    version: int = 1
    status: str = "QUEUED"
    ending: str = ""
    failure: str = ""
    stuck: bool = False
    ignores_cancel: bool = False
    keeps_outputs: bool = True
    pid: int | None = None
    deleted: bool = False
    began: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)
    events: list[dict[str, Any]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def said_status(self) -> str:
        """The state as the service tells it: one that is stuck never ends."""
        return "RUNNING" if self.stuck else self.status

    @property
    def is_live(self) -> bool:
        """Takes up a session."""
        return self.said_status not in TERMINAL

    def outputs(self) -> Iterator[tuple[str, Path]]:
        """`(name, path)` of what is served: regular files of an ended run."""
        working = self.root / "working"
        if self.status in TERMINAL and self.keeps_outputs:
            for path in sorted(working.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    yield str(path.relative_to(working)), path


class World:
    """Everything, behind one lock. Of an ended run's log the first `kept_events` events are served, all if None."""

    def __init__(self, folder: Path, people: list[Person]) -> None:
        self.folder = folder
        self.people = {person.name: person for person in people}
        self.blobs: dict[str, Blob] = {}
        self.datasets: dict[tuple[str, str], Dataset] = {}
        self.kernels: dict[tuple[str, str], Kernel] = {}
        self.links: dict[str, Path] = {}
        self.lock = threading.RLock()
        self.last_id = 1000
        self.kept_events: int | None = None

    def new_id(self) -> int:
        """A number that nothing else has."""
        with self.lock:
            self.last_id += 1
            return self.last_id

    def link(self, path: Path) -> str:
        """The path of a signed URL for a file: who knows it needs no other permission."""
        token = secrets.token_urlsafe(24)
        self.links[token] = path
        return f"/signed/{token}/{path.name}"

    def kernel(self, person: Person, owner: str, slug: str) -> Kernel:
        """The kernel, if it is this person's."""
        if owner != person.name:
            raise RefusedError(403, "Permission 'kernels.get' was denied")
        found = self.kernels.get((owner, slug))
        if found is None:
            raise RefusedError(404, "Not found")
        return found

    def dataset(self, person: Person, owner: str, slug: str) -> Dataset:
        """The dataset, if it is this person's."""
        if owner != person.name:
            raise RefusedError(403, "Permission 'datasets.get' was denied")
        found = self.datasets.get((owner, slug))
        if found is None:
            raise RefusedError(404, "Not found")
        return found

    def live(self, person: Person, *, gpu: bool) -> list[Kernel]:
        """This person's kernels that take up a session of that kind."""
        return [k for k in self.kernels.values() if k.owner == person.name and k.gpu is gpu and k.is_live]

    def reserved_s(self, person: Person) -> float:
        """Seconds of GPU time set aside for running sessions: all of each limit that has not passed."""
        return sum(max(1.0, k.timeout_s - (time.monotonic() - k.began)) for k in self.live(person, gpu=True))


def slugify(title: str) -> str:
    """A title as it appears in an address."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
