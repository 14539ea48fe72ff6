"""Experiment trackers: what a login needs, and writing a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.domain.tracking import Point, TrackerLogin


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to write. `run_id` is the job's id, `config` its settings, `notes` a text about its sessions."""

    tracker: str
    run_id: str
    name: str
    config: dict[str, Any]
    notes: str
    created_at: float
    login: TrackerLogin


class TrackerError(Exception):
    """The tracker did not take it, or not in time. The message is one sentence for people. A later try may succeed."""


class OpenRun(Protocol):
    """A run that is open for writing."""

    @property
    def last_step(self) -> int:
        """The last step that the tracker has, read back from it. -1 for none."""
        ...

    def write(self, points: Sequence[Point], state: str) -> str:
        """Write steps after `last_step` in ascending order, and the job's state. Returns the run's address, or "".

        All is durable at the tracker when it returns. Raises `TrackerError`.
        """
        ...


class Trackers(Protocol):
    """All trackers that this server knows."""

    def fault(self, tracker: str, login: TrackerLogin | None) -> str:
        """Why this server cannot write there with this login, with the remedy, as one sentence. "" if it can try.

        Nothing is sent to the tracker. It may start a process, so it must not run in a transaction.
        """
        ...

    def forget(self, run_id: str) -> None:
        """Delete what this server itself keeps of a job's run."""
        ...

    def file_of(self, run_id: str) -> Path | None:
        """The event file that this server keeps of a job's run at TensorBoard, if there is one."""
        ...

    def open(self, request: RunRequest) -> AbstractContextManager[OpenRun]:
        """Open a run, which is created if there is none. Raises `TrackerError`, also in the block."""
        ...
