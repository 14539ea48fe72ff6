"""Where the trained turns are in the text that a chat template has written. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from worker.shared.rows import Message, Row
from worker.training.interface import PermanentError
from worker.training.left_out import holds

Write = Callable[[Sequence[Message], bool], str]
"""The text of messages of the row, with the start of an answer if asked."""
_MARK = "turnonlymark"
UNSTABLE = (
    "the chat template renders an earlier turn differently when more turns follow, so the assistant's "
    "tokens cannot be found; set train_on_inputs or use a template with {% generation %} marks"
)


def common_start(first: Sequence[object], second: Sequence[object]) -> int:
    """Number of equal ids, or characters, at the start of both."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def answer_spans(row: Row, turns: Sequence[int], text: str, write: Write, *, checked: bool) -> list[tuple[int, int]]:
    """Character ranges of these assistant turns in `text`, including their end-of-turn marks.

    Raises `PermanentError` if one cannot be found. Unchecked, its text is not looked for in its range.
    """
    messages, spans = row.messages, list[tuple[int, int]]()
    for turn in turns:
        message = messages[turn]
        prompt = write(messages[:turn], True) if turn else ""
        so_far = write(messages[: turn + 1], False)
        begin = len(prompt)
        if not text.startswith(prompt):
            begin = _begin_by_content(text, prompt, write(messages[:turn], False), message)
        end = len(so_far) if text.startswith(so_far) else _end_by_content(text, so_far, message, begin or 0)
        if begin is None or end is None or (checked and not holds(text[begin:end], message)):
            raise PermanentError(UNSTABLE)
        spans.append((begin, end))
    return spans


def content_spans(row: Row, turns: Sequence[int], text: str, write: Write) -> list[tuple[int, int]]:
    """Character ranges of the texts of these turns, which are of other roles, without what the template adds.

    Raises `PermanentError` if one cannot be found.
    """
    spans: list[tuple[int, int]] = []
    for turn in turns:
        with_mark = replace(row.messages[turn], content=_MARK)
        written = write((*row.messages[:turn], with_mark, *row.messages[turn + 1 :]), False)
        before, found, after = written.partition(_MARK)
        end = len(text) - len(after)
        if not found or not text.startswith(before) or not text.endswith(after) or end < len(before):
            raise PermanentError(
                f"turn {turn + 1} ({row.messages[turn].role}) is to be trained on, but cannot be found in what the "
                "chat template writes; train on other turns, or use a model with another template"
            )
        spans.append((len(before), end))
    return spans


def untaught_ranges(row: Row, text: str, write: Write) -> list[tuple[int, int]]:
    """Character ranges with one answer each, for the answers that are not trained on. They begin after earlier turns.

    Raises `PermanentError` if one cannot be told from the answer before it.
    """
    answers = [turn for turn, message in enumerate(row.messages) if message.role == "assistant"]
    taught = set(row.taught)
    if taught.issuperset(answers):
        return []
    begins: list[int] = []
    for turn in answers:
        before = write(row.messages[:turn], False) if turn else ""
        begins.append(common_start(text, before))
        # A template may decorate the end of a conversation. Behind a question, that is not a part of an answer.
        if begins[-1] < len(before) and row.messages[turn - 1].role == "assistant":
            raise PermanentError(UNSTABLE)
    ends = [*begins[1:], len(text)]
    found = list(zip(answers, begins, ends, strict=True))
    if not all(holds(text[begin:end], row.messages[turn]) for turn, begin, end in found):
        raise PermanentError(UNSTABLE)
    return [(begin, end) for turn, begin, end in found if turn not in taught]


def _anchor(message: Message) -> str:
    """Words of the turn that stand in its rendering."""
    content = message.content.strip()
    return content or (json.loads(message.calls)[0]["function"]["name"] if message.calls else "")


def _begin_by_content(text: str, prompt: str, before: str, message: Message) -> int | None:
    """Where a turn begins, for templates that open a thought in the prompt that earlier answers do not have."""
    anchor = _anchor(message)
    at = text.find(anchor, len(before)) if anchor else -1
    shared = common_start(text, prompt)
    return min(shared, at) if at >= 0 and shared >= len(before) and text.startswith(before) else None


def _end_by_content(text: str, so_far: str, message: Message, begin: int) -> int | None:
    """Where a turn ends, for templates that decorate only the last turn, for example with an empty thought."""
    anchor = _anchor(message)
    tail = so_far[so_far.rfind(anchor) + len(anchor) :]
    at = text.find(anchor, begin)
    end = at + len(anchor) + len(tail)
    return end if at >= 0 and anchor in so_far and text[at + len(anchor) : end] == tail else None
