"""The error that a call to a server may raise, and its message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Reason = Literal["failed", "usage", "not_found", "not_allowed", "unreachable", "timeout"]
Problem = tuple[str, str]
"""A JSON pointer into the request, and what is wrong there."""


class Error(Exception):
    """A call failed. `str` gives the server's message, or says why the server was not reached.

    `reason` is one word for programs. `lines` are the sentences of the message. `status` is the server's HTTP status,
    None if it did not answer. `problems` are the server's `(JSON pointer, sentence)` pairs.
    """

    def __init__(
        self, *lines: str, reason: Reason = "failed", status: int | None = None, problems: Sequence[Problem] = ()
    ) -> None:
        super().__init__("\n".join(lines))
        self.lines, self.reason, self.status, self.problems = lines, reason, status, tuple(problems)

    @classmethod
    def refused(cls, status: int, message: str, problems: Sequence[Problem] = ()) -> Error:
        """The error for a refusal by the server, with the server's message."""
        lines = problem_lines(message, problems)
        return cls(*lines, reason=_BY_STATUS.get(status, "failed"), status=status, problems=problems)


_BY_STATUS: dict[int, Reason] = {
    400: "usage",
    401: "not_allowed",
    403: "not_allowed",
    404: "not_found",
    405: "usage",
    413: "usage",
    415: "usage",
    422: "usage",
    502: "unreachable",
    503: "unreachable",
    504: "unreachable",
}


def problem_lines(message: str, problems: Sequence[Problem]) -> list[str]:
    """The lines of a refusal. A summary by the server of the same problems is left out."""
    lines = [f"{where(pointer)}: {detail}" for pointer, detail in problems]
    if len(problems) == 1 and message != f"{problems[0][0]}: {problems[0][1]}" and problems[0][1] in message:
        return [message]
    summary = "; ".join(f"{pointer}: {detail}" for pointer, detail in problems[:3])
    return lines if message == summary else [message, *lines]


def where(pointer: str) -> str:
    """A JSON pointer as a readable path: `/datasets/0/path` becomes `datasets[0].path`."""
    text = ""
    for part in pointer.strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        text += f"[{key}]" if key.isdigit() else f".{key}" if text else key
    return text or "the file"
