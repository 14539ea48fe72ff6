"""What a row of a dataset is, and what of a file's row is refused because training would not heed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEARNT = ("assistant", "gpt", "chatgpt", "model")
"""Names of the one who is learnt from, in any format."""
_NO_TOOLS = (None, "", "[]", [])


class DatasetError(ValueError):
    """A dataset that cannot be trained on. `line` is 1-based, `None` when the fault is the whole file's."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {message}" if line is not None else message)
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One training example: a conversation, or a plain text with an optional untrained prompt before it.

    Nothing is learnt from the first `given` messages, whoever says them.
    """

    messages: tuple[Message, ...] = ()
    given: int = 0
    prompt: str = ""
    text: str = ""


def refuse_unheeded(turn: Any, column: str, line: int) -> None:
    """Raise `DatasetError` for a turn that says more than its words, which would be lost unsaid."""
    found: dict[str, Any] = turn if isinstance(turn, dict) else {}
    if found.get("tool_calls") or found.get("function_call"):
        raise DatasetError(
            f"a turn in '{column}' calls a tool, which is not trained on; write the call into its words or remove the row",
            line,
        )
    if (found.get("role") or found.get("from")) in LEARNT and found.get("weight") not in (None, 1):
        raise DatasetError(
            f"a turn in '{column}' has weight {found['weight']}, but all assistant turns are learnt alike; leave weights "
            "out, or put what is not to be learnt into the 'prompt' of a prompt_completion row",
            line,
        )


def with_columns(row: Row, record: dict[str, Any], line: int) -> Row:
    """A conversation with the `system` column, if there is one, as its first message. Raises `DatasetError` for `tools`."""
    if record.get("tools") not in _NO_TOOLS:
        raise DatasetError("has 'tools', which no session shows to the model; remove the column or the row", line)
    system = record.get("system")
    if system is None or system == "":
        return row
    if not isinstance(system, str):
        raise DatasetError(f"'system' must be a string, not {type(system).__name__}", line)
    said = [turn.content for turn in row.messages if turn.role == "system"]
    if said and said != [system]:
        raise DatasetError("has both a 'system' column and another system turn; keep one of them", line)
    return row if said else Row(messages=(Message("system", system), *row.messages), given=row.given and row.given + 1)
