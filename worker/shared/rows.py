"""The rows of a dataset, and the system column of a row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from worker.shared.row_keys import DatasetError

EACH_TURN = "turn"
"""The end of every trained turn is trained. See `dataset_spec.DatasetSpec.train_on_eos`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is one of `row_formats.ROLES`.

    `thought` comes before the content. `calls` are the tool calls after it: a JSON list in OpenAI's form, with objects
    as arguments. `name` and `call_id` say which call a tool answers. `train` says whether the turn is trained on. None
    leaves it to the role.
    """

    role: str
    content: str
    thought: str = ""
    calls: str = ""
    name: str = ""
    call_id: str = ""
    train: bool | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that a chat template may write of the turn."""
        more = (self.thought, self.calls, self.name, self.call_id)
        return (self.content, *more) if any(more) else (self.content,)

    @property
    def said(self) -> str:
        """Thought, content and calls as one text."""
        if not self.thought and not self.calls:
            return self.content
        return "\n".join(part for part in (self.thought, self.content, self.calls) if part)


@dataclass(frozen=True, slots=True)
class Row:
    """One training example: a conversation, or a plain text after an optional prompt that is not trained on.

    The first `given` messages are not trained on, whatever their role. `unused` are keys that no format reads. `tools`
    is a JSON list of the schemas of the tools that the assistant may call. `ends` says which ends of turns are trained.
    A row of preferences has a second answer to the same prompt, `rejected`, or says whether its own is `desirable`.
    """

    messages: tuple[Message, ...] = ()
    given: int = 0
    prompt: str = ""
    text: str = ""
    unused: tuple[str, ...] = field(default=(), compare=False)
    tools: str = ""
    ends: str = EACH_TURN
    rejected: Row | None = None
    desirable: bool | None = None

    @property
    def taught(self) -> list[int]:
        """The places of the messages that are trained on."""
        return [place for place, turn in enumerate(self.messages) if place >= self.given and _is_taught(turn)]

    @property
    def sides(self) -> tuple[Row, ...]:
        """The row and, if it has one, the rejected answer to its prompt."""
        return (self,) if self.rejected is None else (self, self.rejected)


def _is_taught(turn: Message) -> bool:
    return turn.role == "assistant" if turn.train is None else turn.train


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
