"""What a tracker's module gets and must have. Only the standard library: these modules run in other environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Login(Protocol):
    """A person's login. `is_trusted` says that an admin has set it, so it may lead into the server's own network."""

    url: str
    key: str
    project: str
    is_trusted: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to write. `id` is the job's. `folder` is private to this run, and empty unless the tracker keeps files.

    `url`, `key` and `project` are a person's login, each may be empty. `config` has the job's settings, `notes` a text
    about its sessions. `created_at` is the time of its submission in epoch seconds.
    """

    id: str
    name: str
    url: str
    key: str
    project: str
    config: dict[str, Any]
    notes: str
    created_at: float
    folder: str


Point = tuple[int, float, dict[str, float]]
"""A step, when it was reported (epoch seconds), and its values."""


class Writer(Protocol):
    """A run that is open. Errors of libraries may pass: the server tries again later."""

    @property
    def last_step(self) -> int:
        """The last step that the tracker has, read back from it. -1 for none."""
        ...

    def write(self, points: list[Point]) -> None:
        """Write steps after `last_step`, ascending."""
        ...

    def close(self, state: str) -> str:
        """Return once all is durable at the tracker. Returns the run's address, or "".

        `state` is "running", or the final state of the job: "succeeded", "failed" or "cancelled".
        """
        ...


class Tracker(Protocol):
    """A module of this package: the name of the library that it needs ("" for none), and two functions.

    `login_fault` says what is wrong with a login, or that there is none, as one sentence with the remedy, or "". It may
    not import the library.
    """

    LIBRARY: str

    def login_fault(self, login: Login | None) -> str: ...
    def open_run(self, run: Run) -> Writer: ...


DEFAULT_PROJECT = "trainhop"


def set_it(tracker: str, what: str) -> str:
    """The sentence about a login that is missing."""
    return f"{what} Set it with `trainhop trackers set {tracker}`."
