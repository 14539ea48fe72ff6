"""Errors by what the caller should do.

TrainhopError
├── NotFoundError        look elsewhere
├── ForbiddenError       ask somebody who may
├── InvalidError         correct the request; `problems` point at the fields
├── ConflictError        the thing is not in a state that allows this
│   ├── IllegalMoveError     a state table lacks this step
│   └── StaleFenceError      a newer lease exists: stop working
└── UnavailableError     try again later
"""

from __future__ import annotations

from collections.abc import Sequence


class TrainhopError(Exception):
    """Base of everything this project raises on purpose; the message is meant for people."""


class NotFoundError(TrainhopError):
    """There is no such thing, or the caller may not know of it."""


class ForbiddenError(TrainhopError):
    """The caller's role or ownership does not allow this."""


class InvalidError(TrainhopError):
    """The request is wrong. `problems` holds `(JSON pointer, sentence)` pairs."""

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class ConflictError(TrainhopError):
    """The request is right but not now."""


class IllegalMoveError(ConflictError):
    """The state machine has no such step."""


class StaleFenceError(ConflictError):
    """The lease has ended or a newer one exists; the worker must stop."""


class UnavailableError(TrainhopError):
    """Something outside does not answer; nothing was changed. `retry_after_s` is how long it asked to be left alone."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
