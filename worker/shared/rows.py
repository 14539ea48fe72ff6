"""The rows of a dataset, and the system column of a row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from worker.shared.row_keys import DatasetError


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is one of `row_formats.ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One training example: a conversation, or a plain text after an optional prompt that is not trained on.

    The first `given` messages are not trained on, whatever their role. `unused` are keys that no format reads. A row of
    preferences has a second answer to the same prompt, `rejected`, or says whether its own is `desirable`.
    """

    messages: tuple[Message, ...] = ()
    given: int = 0
    prompt: str = ""
    text: str = ""
    unused: tuple[str, ...] = field(default=(), compare=False)
    rejected: Row | None = None
    desirable: bool | None = None

    @property
    def sides(self) -> tuple[Row, ...]:
        """The row and, if it has one, the rejected answer to its prompt."""
        return (self,) if self.rejected is None else (self, self.rejected)


def with_columns(row: Row, record: dict[str, Any], line: int) -> Row:
    """Add the `system` column, if there is one, as the first message."""
    system = record.get("system")
    if system is None or system == "":
        return row
    if not isinstance(system, str):
        raise DatasetError(f"'system' must be a string, not {type(system).__name__}", line)
    system_turns = [turn.content for turn in row.messages if turn.role == "system"]
    if system_turns and system_turns != [system]:
        raise DatasetError("has both a 'system' column and another system turn; keep one of them", line)
    if system_turns:
        return row
    return replace(row, messages=(Message("system", system), *row.messages), given=row.given and row.given + 1)
