"""The exports that a server is making, and the folder of those that it has made."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.domain.exports import Export, ExportFormat
from orchestrator.ports.exports import Exporter

SPARE_BYTES = 5 << 30
"""Stay free on the server's disk, because its database and its store need room."""
MAX_WAITING = 8
WORK = ".work-"
Key = tuple[str, ExportFormat]


@dataclass
class Task:
    """An export that waits, runs or has failed, and whether it was forgotten."""

    export: Export
    is_forgotten: bool = False


@dataclass
class RunningExports:
    """The exports of one server, in `folder`. Those that have ended well are read from there."""

    folder: Path
    exporter: Exporter
    spare_bytes: int = SPARE_BYTES
    most_waiting: int = MAX_WAITING
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="export"))
    tasks: dict[Key, Task] = field(default_factory=dict[Key, Task])
    lock: threading.RLock = field(default_factory=threading.RLock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """End the export that is running, and start no other."""
        self.stopping.set()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def place(self, key: Key) -> Path:
        """The folder of an export."""
        return self.folder / key[0] / key[1].value

    def remove_unfinished(self) -> None:
        """Remove what a server that was killed left."""
        for left in (*self.folder.glob(f"{WORK}*"), *self.folder.glob("*/.*.part")):
            shutil.rmtree(left, ignore_errors=True)

    def forget(self, key: Key) -> None:
        """Cancel an export and remove its files."""
        with self.lock:
            if (task := self.tasks.pop(key, None)) is not None:
                task.is_forgotten = True
            shutil.rmtree(self.place(key), ignore_errors=True)

    def forget_job(self, job_id: str) -> None:
        """Cancel all exports of a job and remove their files."""
        for form in ExportFormat:
            self.forget((job_id, form))
        shutil.rmtree(self.folder / job_id, ignore_errors=True)
