"""The server's records of jobs, plans and data files.

Times are seconds or RFC 3339, sizes are bytes, hashes are lower-case hex. `data` of each record is the server's whole
response. docs/api.md and a server's `/openapi.json` describe its other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from trainhop.errors import Error
from trainhop.polling import FINAL


def _named(record: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that the server's JSON has under the same names."""
    return {each.name: data[each.name] for each in fields(record) if each.name != "data"}


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

    @property
    def waiting(self) -> str:
        """Why it waits, while it is queued or starting. Empty otherwise."""
        return _within(self.data.get("waiting"), "reason") or ""

    @property
    def waiting_until(self) -> str | None:
        """The time until which it waits, None if that is not known."""
        return _within(self.data.get("waiting"), "until")

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
        return cls(**_named(cls, data), data=data)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One attempt of a job on one machine. `outcome` is None while it runs, `detail` says more of its state."""

    id: str
    account: str
    provider: str
    state: str
    outcome: str | None
    detail: str
    first_step: int
    last_step: int
    seconds: float
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record of the server's JSON."""
        return cls(**_named(cls, data), data=data)


@dataclass(frozen=True, kw_only=True)
class Output:
    """A piece of a session's output. `offset` and `next_offset` are bytes. `is_end` is whether nothing follows yet."""

    session: str
    text: str
    offset: int
    next_offset: int
    is_end: bool


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change to a job. Ids grow with time. `actor` made the change."""

    id: int
    at: str
    kind: str
    actor: str
    reason: str
    session: str | None
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record of the server's JSON."""
        return cls(**_named(cls, data), data=data)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Values of an optimiser step by name, such as `loss`. A value is None if it is not a finite number."""

    step: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a job has measured, by step. A step that was repeated after a lost session has its newest values."""

    steps: tuple[Step, ...]

    def to_dataframe(self) -> Any:
        """A pandas `DataFrame` with one row for each step and one column for each name. Its index is `step`.

        Raises `Error` if pandas is not installed.
        """
        try:
            import pandas as pd  # pyright: ignore[reportMissingImports, reportMissingTypeStubs, reportUnknownVariableType]
        except ImportError as error:
            raise Error("pandas is not installed. Install it with `pip install pandas`.", reason="usage") from error
        index = pd.Index([each.step for each in self.steps], name="step")
        return pd.DataFrame([dict(each.values) for each in self.steps], index=index, dtype="float64")
