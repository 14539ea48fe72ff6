"""Errors by what the caller should do.

TrainhopError
├── NotFoundError        check the name or id
│   └── GoneError            it existed, and does not come back
├── ForbiddenError       ask an admin or the owner
├── InvalidError         correct the request (`problems` point at the fields)
│   └── FindingsError        correct the data, or accept what the checks found in it
├── ConflictError        wait until the state allows this
│   ├── IllegalMoveError     the state table has no such step
│   ├── KeyTakenError        another request with this Idempotency-Key was faster: use its answer
│   └── StaleFenceError      stop working: a newer lease exists
└── UnavailableError     try again later
"""

from __future__ import annotations

from collections.abc import Sequence


class TrainhopError(Exception):
    """Base of all errors that this project raises on purpose. The message is meant for people."""


class NotFoundError(TrainhopError):
    """It does not exist, or the caller may not know that it exists."""


class GoneError(NotFoundError):
    """It existed once, and the caller may know that."""


class ForbiddenError(TrainhopError):
    """The caller's role or ownership does not allow this."""


class InvalidError(TrainhopError):
    """The request is wrong. `problems` holds `(JSON pointer, sentence)` pairs."""

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class FindingsError(InvalidError):
    """The data checks stop this job."""


class ConflictError(TrainhopError):
    """The request is valid, but the current state does not allow it."""


class IllegalMoveError(ConflictError):
    """The state machine has no such step."""


class KeyTakenError(ConflictError):
    """Another request with the same Idempotency-Key was faster. Its answer is also the answer to this one."""


class StaleFenceError(ConflictError):
    """The lease has ended or a newer one exists. The worker must stop."""


class UnavailableError(TrainhopError):
    """Something outside does not answer. Nothing was changed. `retry_after_s` is how many seconds to wait."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
