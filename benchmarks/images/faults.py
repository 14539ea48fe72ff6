"""Breaks something on the machine. Measures the text on the job's page, the sessions, and their length."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.images.figures import Desk, Shelf, desk, nothing_built
from benchmarks.report import Figure
from benchmarks.tiny_job import job_file, say
from tests.emulators.hub import HubEmulator, Repo
from tests.images import Image, load

MAX_SESSIONS, MAX_S = 3, 300.0
DEAD = "http://127.0.0.1:9/simple"
SMALL_DISK = "24m"
"""Large enough for the worker, but not for its packages."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`environment` applies to the kernel, `changes` to the job.

    The job's page must contain each of `words`, which name the cause, and end with the `remedy`.
    """

    name: str
    words: tuple[str, ...]
    remedy: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    arrange: Callable[[Desk], None] | None = None


def planted(folder: Path, shelf: Shelf) -> Iterator[Figure]:
    """Each fault in turn, on Kaggle's image."""
    image = load("kaggle-gpu")
    if image.problem:
        yield nothing_built()
        return
    with ExitStack() as until_the_end:
        files = {path.name: path.read_bytes() for path in shelf.model.iterdir()}
        hub = until_the_end.enter_context(HubEmulator(Repo(id="org/quiet", files=files)))
        hub.stall("GET /signed/model.safetensors", after=1_000)
        for fault in (*_of_packages(folder), *_of_inputs(hub)):
            yield _plant(folder, image, shelf, fault)
        small = until_the_end.enter_context(_small_disk(folder))
        if small is None:
            yield Figure(name="fault: full disk", value="no small disk can be mounted here", bar="root", ok=False)
        else:
            full = Fault(
                name="full disk",
                words=("disk", "full"),
                remedy="free some space, or use a machine with a larger disk",
                environment={"TMPDIR": str(small)},
            )
            yield _plant(folder, image, shelf, full)


def _of_packages(folder: Path) -> list[Fault]:
    pins = folder / "pins.txt"
    pins.write_text("transformers<5\n")
    index = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": DEAD, "PIP_RETRIES": "1"}
    return [
        Fault(
            name="version conflict",
            words=("transformers", "conflict"),
            remedy="update trainhop, then retry the job",
            environment={"PIP_CONSTRAINT": str(pins)},
        ),
        Fault(
            name="dead index",
            words=("internet",),
            remedy="check that it has internet access, then retry the job",
            environment=index,
        ),
    ]


def _of_inputs(hub: HubEmulator) -> list[Fault]:
    asleep = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    return [
        Fault(
            name="missing input",
            words=("did not provide",),
            remedy="retry the job later, or run it on another account",
            arrange=_lose_inputs,
        ),
        Fault(name="no GPU", words=("GPU",), remedy="set backend to auto or hf", changes={"backend": "unsloth"}),
        Fault(
            name="stalled download",
            words=("download",),
            remedy="check that this machine reaches the hub, then retry the job",
            environment=asleep,
            changes={"base_model": "org/quiet"},
        ),
    ]


def _plant(folder: Path, image: Image, shelf: Shelf, fault: Fault) -> Figure:
    say(f"fault: {fault.name} ...")
    home = Path(tempfile.mkdtemp(prefix=fault.name.replace(" ", "-") + "-", dir=folder))
    with desk(home, image, shelf.folder, fault.environment) as there:
        if fault.arrange:
            fault.arrange(there)
        job = there.submit(job_file(shelf.model, there.server.upload(shelf.rows), "lora") | dict(fault.changes))
        with _Vigil(there, job) as vigil:
            ended = there.wait(job)
        sessions = there.sessions(job)
    page = ended["message"]
    good = [
        ended["state"] == "failed",
        len(page.splitlines()) == 1,
        all(word.lower() in page.lower() for word in fault.words),
        page.endswith(fault.remedy),
        len(sessions) <= MAX_SESSIONS,
        vigil.longest_s <= MAX_S,
    ]
    value = {"page": page, "sessions": len(sessions), "longest_s": round(vigil.longest_s, 1)}
    return Figure(
        name=f"fault: {fault.name}",
        value=value,
        bar=f"cause and remedy in a sentence, <= {MAX_SESSIONS} sessions of <= {MAX_S:.0f} s",
        ok=all(good),
    )


class _Vigil:
    """Measures how long each kernel runs, and advances the clock whenever the job waits for its next attempt.

    Other tests measure that wait.
    """

    def __init__(self, there: Desk, job: str) -> None:
        self._there, self._job, self._over = there, job, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.longest_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        file = self._there.server.data / "trainhop.db"
        with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as database:
            while not self._over.wait(0.25):
                running = [k for k in list(self._there.kaggle.world.kernels.values()) if k.pid is not None]
                self.longest_s = max([self.longest_s, *(time.monotonic() - kernel.began for kernel in running)])
                database.execute("UPDATE jobs SET not_before = 0 WHERE id = ? AND state = 'queued'", (self._job,))


def _lose_inputs(there: Desk) -> None:
    """No kernel receives its staged files."""
    there.kaggle.sessions.layout = "lost"


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """A separate disk that is too small for the packages. None if mounting is not allowed."""
    place = folder / "small-disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(["mount", *options], check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)
