"""The server's records of jobs, plans and data files.

Times are seconds or RFC 3339, sizes are bytes, hashes are lower-case hex. `data` of each record is the server's whole
response. docs/api.md and a server's `/openapi.json` describe its other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from trainhop.polling import FINAL


def _within(part: Mapping[str, Any] | None, key: str) -> Any:
    return part.get(key) if part is not None else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job at the time of the call. `message` gives the reason for its state, if there is one."""

    id: str
    name: str
    member: str
    state: str
    message: str
    step: int
    total_steps: int
    loss: float | None
    seconds_left: float | None
    adapter_sha256: str | None
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether only a retry can change it."""
        return self.state in FINAL

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record of the server's JSON."""
        return cls(
            id=data["id"],
            name=data["name"],
            member=data["member"],
            state=data["state"],
            message=data["message"],
            step=data["step"],
            total_steps=data["total_steps"],
            loss=_within(data.get("loss"), "last"),
            seconds_left=data.get("eta_seconds"),
            adapter_sha256=_within(data.get("adapter"), "sha256"),
            data=data,
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a job would take at one account. `obstacle` says why it cannot run there and is empty if it can."""

    account: str
    provider: str
    sessions: int | None
    seconds: float | None
    obstacle: str
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record of the server's JSON."""
        return cls(
            account=data["account"],
            provider=data["provider"],
            sessions=data["sessions"],
            seconds=data["seconds"],
            obstacle=_within(data.get("obstacle"), "reason") or "",
            data=data,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would happen to a job. `done_at` is the earliest end, None if it is not known."""

    steps: int
    train_rows: int
    gpu_bytes: int
    done_at: str | None
    places: tuple[Place, ...]
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record of the server's JSON."""
        return cls(
            steps=data["steps"],
            train_rows=data["train_rows"],
            gpu_bytes=data["gpu_bytes"],
            done_at=data["done_at"],
            places=tuple(Place.of(each) for each in data["places"]),
            data=data,
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An uploaded data file. `type` is how its rows are read."""

    sha256: str
    size: int
    rows: int
    type: str
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def path(self) -> str:
        """The path that names it in a job file."""
        return f"sha256:{self.sha256}"

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record of the server's JSON."""
        return cls(sha256=data["sha256"], size=data["size"], rows=data["rows"], type=data["type"], data=data)
