"""The row formats: from a record of a file to the row that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from worker.shared import llama_factory_rows, openai_rows, row_turns
from worker.shared.answer_checks import CheckError, check_of
from worker.shared.dataset_spec import RowFormat
from worker.shared.row_keys import CALLS, DatasetError, check_keys, is_empty
from worker.shared.rows import Message, Row, with_columns

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLES = {**{role: role for role in ROLES}, "function": "tool"}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_CALL = "function_call"
"""The role of a ShareGPT turn whose text is a call."""
_COLUMNS: dict[RowFormat, tuple[str, ...]] = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.PREFERENCE: ("chosen", "rejected"),
    RowFormat.SHAREGPT: ("conversations",),
    RowFormat.UNPAIRED_PREFERENCE: ("prompt", "completion", "label"),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    RowFormat.ALPACA: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
    RowFormat.TASK: ("check",),
}
_TOOLS = ("tools", "functions")
_OPTIONAL: dict[RowFormat, tuple[str, ...]] = {
    RowFormat.MESSAGES: ("system", *_TOOLS),
    RowFormat.SHAREGPT: ("system", *_TOOLS),
    RowFormat.PROMPT_COMPLETION: ("system", *_TOOLS),
    RowFormat.ALPACA: ("input", "history", "system", *_TOOLS),
    RowFormat.PREFERENCE: ("prompt", "system", *_TOOLS),
    RowFormat.UNPAIRED_PREFERENCE: ("system", *_TOOLS),
    RowFormat.TEXT: (),
    RowFormat.TASK: ("prompt", "messages"),
}


def _as_pair(record: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    return llama_factory_rows.as_pair(openai_rows.as_pair(record), roles)


_USUAL = {
    RowFormat.PREFERENCE: _as_pair,
    RowFormat.UNPAIRED_PREFERENCE: llama_factory_rows.as_rated,
}
"""Functions that give a row of another form its usual columns."""
KEYS_SHOWN, MAX_KEY_SHOWN = 12, 40
_TURNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_ACCEPTED = "; ".join(f"{', '.join(columns)} ({name})" for name, columns in _COLUMNS.items())
_OTHERS = "question, answer; or name your columns in the job file (field_messages, field_instruction, field)"


def is_known(keys: Iterable[str]) -> bool:
    """Whether a row with these keys has all columns of a format."""
    key_set = set(keys)
    return any(key_set.issuperset(columns) for columns in _COLUMNS.values()) or openai_rows.has_sides(key_set)


def detect_row_format(keys: Iterable[str], line: int) -> RowFormat:
    """The format with all its columns in `keys`. Raises `DatasetError` with the list of keys."""
    key_set = set(keys)
    usual = set(map(llama_factory_rows.usual_column, key_set))
    for name, columns in _COLUMNS.items():
        if usual.issuperset(columns):
            return name
    if openai_rows.has_sides(key_set):
        return RowFormat.PREFERENCE
    shown = [key[:MAX_KEY_SHOWN] for key in sorted(key_set)[:KEYS_SHOWN]]
    raise DatasetError(f"unknown row format with keys {shown}; accepted are: {_ACCEPTED}; {_OTHERS}", line)


def _article(kind: RowFormat) -> str:
    return "an" if kind[0] in "aeiou" else "a"


def to_row(kind: RowFormat, line: int, record: dict[str, Any], *, all_keys: bool = True) -> Row:
    """The row of a record. Without `all_keys`, keys that no format reads fall away. Raises `DatasetError`."""
    record = _USUAL[kind](record, SHAREGPT_ROLES) if kind in _USUAL else record
    _refuse_missing(kind, line, record)
    unused = _unused_keys(kind, line, record) if all_keys else ()
    row = _PARSERS[kind](record if all_keys else _as_once(record), line)
    if row.messages:
        row = with_columns(row, record, line)
        if all_keys and (tools := row_turns.tools(record, line)):
            row = replace(row, tools=tools)
    if row.rejected is not None and row.rejected.messages:
        row = replace(row, rejected=replace(with_columns(row.rejected, record, line), tools=row.tools))
    try:
        for side in row.sides:
            for text in (side.prompt, side.text, side.tools, *(part for turn in side.messages for part in turn.texts)):
                text.encode()
    except UnicodeEncodeError:  # JSON may escape one half of a surrogate pair, which no tokenizer accepts
        raise DatasetError("has an unpaired surrogate character; fix the row", line) from None
    return replace(row, unused=unused) if unused else row


def _as_once(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a job that began before `history` was read, and more of a turn than its role and its text."""
    read = {name: value for name, value in record.items() if name != "history"}
    kept = ("role", "content", "from", "value")
    for column in _TURNS:
        if isinstance(turns := read.get(column), list):
            read[column] = [
                {k: turn[k] for k in kept if k in turn} if isinstance(turn, dict) else turn for turn in turns
            ]
    return read


def _unused_keys(kind: RowFormat, line: int, record: dict[str, Any]) -> tuple[str, ...]:
    used = _COLUMNS[kind] + _OPTIONAL[kind]
    if any(isinstance(record.get(name), str) for name in ("completion", "chosen") if name in _COLUMNS[kind]):
        used = tuple(name for name in used if name not in ("system", *_TOOLS))  # no chat template writes this row
    return check_keys(record, used, [name for name in _TURNS if name in used], line)


def _refuse_missing(kind: RowFormat, line: int, record: dict[str, Any]) -> None:
    missing = [name for name in _COLUMNS[kind] if record.get(name) is None]
    if missing:
        for other, columns in _COLUMNS.items():
            if other is not kind and all(record.get(name) is not None for name in columns):
                found = f"is {_article(other)} {other} row in {_article(kind)} {kind} dataset"
                raise DatasetError(f"{found}; use one format per file", line)
        names = ", ".join(f"'{name}'" for name in missing)
        needed = f"{_article(kind)} {kind} row needs {', '.join(_COLUMNS[kind])}"
        raise DatasetError(f"column {names} is missing; {needed}", line)


def _from_messages(record: dict[str, Any], line: int) -> Row:
    return _conversation(_turns(record["messages"], "messages", line), line)


def _from_sharegpt(record: dict[str, Any], line: int) -> Row:
    turns = _turns(record["conversations"], "conversations", line, role="from", content="value")
    return _conversation(turns, line)


def _from_prompt_completion(record: dict[str, Any], line: int) -> Row:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Row(prompt=prompt, text=_filled(completion, "completion", line))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DatasetError("'prompt' and 'completion' must both be strings or both be lists of messages", line)
    before = _turns(prompt, "prompt", line)
    return _conversation(before + _turns(completion, "completion", line), line, given=len(before))


def _from_preference(record: dict[str, Any], line: int) -> Row:
    prompt, good, bad = record.get("prompt"), record["chosen"], record["rejected"]
    if isinstance(good, str) and isinstance(bad, str) and (prompt is None or isinstance(prompt, str)):
        chosen, rejected = _pair_of_texts(prompt, good, bad, line)
    elif isinstance(good, list) and isinstance(bad, list):
        chosen, rejected = _pair_of_turns(prompt, good, bad, line)
    else:
        raise DatasetError("'prompt', 'chosen' and 'rejected' must all be strings or all be lists of messages", line)
    if chosen == rejected:
        raise DatasetError("'chosen' and 'rejected' are the same; remove the row", line)
    return replace(chosen, rejected=rejected)


def _pair_of_texts(prompt: str | None, chosen: str, rejected: str, line: int) -> tuple[Row, Row]:
    if prompt is None and chosen != rejected:
        shared = _common_start(chosen, rejected)
        shared -= shared > 0 and chosen[shared - 1] == " "  # the space belongs to the first word of the answer
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    texts = _filled(chosen, "chosen", line), _filled(rejected, "rejected", line)
    return Row(prompt=prompt or "", text=texts[0]), Row(prompt=prompt or "", text=texts[1])


def _pair_of_turns(prompt: Any, chosen: Any, rejected: Any, line: int) -> tuple[Row, Row]:
    sides = [_turns(chosen, "chosen", line), _turns(rejected, "rejected", line)]
    begun = [turn.content.strip() for turn in sides[0][: _common_start(*sides)] if turn.role == "user"]
    if isinstance(prompt, str) and prompt.strip() not in begun[-1:]:
        raise DatasetError(
            "'prompt' is a string and not the last user turn that 'chosen' and 'rejected' begin with; "
            "write it as a list of messages",
            line,
        )
    if prompt is None or isinstance(prompt, str):
        given = _common_start(*sides)
    else:
        before = _turns(prompt, "prompt", line)
        given = len(before)
        if before and all(side[:given] == before for side in sides):
            raise DatasetError("'chosen' and 'rejected' begin with the prompt again; remove it from them", line)
        sides = [before + side for side in sides]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if not any(turn.role == "assistant" and turn.content.strip() for turn in side[given:]):
            raise DatasetError(f"'{name}' has no assistant turn with text; add one or remove the row", line)
    return Row(messages=sides[0], given=given), Row(messages=sides[1], given=given)


def _common_start(first: Sequence[object], second: Sequence[object]) -> int:
    """Entries that both begin with. At least one of the shorter one is left."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), max(0, min(len(first), len(second)) - 1))


def _from_unpaired(record: dict[str, Any], line: int) -> Row:
    label = record["label"]
    if not isinstance(label, bool):
        raise DatasetError(f"'label' is {str(label)[:MAX_KEY_SHOWN]!r}; write true or false, without quotes", line)
    return replace(_from_prompt_completion(record, line), desirable=label)


def _from_alpaca(record: dict[str, Any], line: int) -> Row:
    question = _filled(record["instruction"], "instruction", line)
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise DatasetError("'input' must be a string", line)
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    answer = Message("assistant", _filled(record["output"], "output", line))
    return Row(messages=(*_history(record.get("history"), line), Message("user", question), answer))


def _history(value: Any, line: int) -> Iterator[Message]:
    """Earlier turns of an alpaca row: pairs of an instruction and its output, which are taught like the last one."""
    if value in (None, "", "[]"):
        return
    if not isinstance(value, list):
        raise DatasetError("'history' must be a list of [instruction, output] pairs", line)
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DatasetError("'history' must be a list of [instruction, output] pairs", line)
        yield Message("user", _filled(pair[0], "history", line))
        yield Message("assistant", _filled(pair[1], "history", line))


def _from_text(record: dict[str, Any], line: int) -> Row:
    return Row(text=_filled(record["text"], "text", line))


def _from_task(record: dict[str, Any], line: int) -> Row:
    prompt, messages = record.get("prompt"), record.get("messages")
    if (prompt is None) == (messages is None):
        raise DatasetError("a task needs either 'prompt' or 'messages'", line)
    turns = (
        (Message("user", _filled(prompt, "prompt", line)),) if messages is None else _turns(messages, "messages", line)
    )
    if not turns or turns[-1].role == "assistant":
        raise DatasetError("'messages' of a task must end with the turn that is to be answered", line)
    try:
        check_of(record["check"])
    except CheckError as error:
        raise DatasetError(str(error), line) from None
    return Row(messages=turns)


_PARSERS: dict[RowFormat, Callable[[dict[str, Any], int], Row]] = {
    RowFormat.MESSAGES: _from_messages,
    RowFormat.SHAREGPT: _from_sharegpt,
    RowFormat.PREFERENCE: _from_preference,
    RowFormat.UNPAIRED_PREFERENCE: _from_unpaired,
    RowFormat.PROMPT_COMPLETION: _from_prompt_completion,
    RowFormat.ALPACA: _from_alpaca,
    RowFormat.TEXT: _from_text,
    RowFormat.TASK: _from_task,
}


def _filled(value: Any, column: str, line: int) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"'{column}' must be a string, not {type(value).__name__}", line)
    if not value.strip():
        raise DatasetError(f"'{column}' is empty; fill it in or remove the row", line)
    return value


def _turns(value: Any, column: str, line: int, role: str = "role", content: str = "content") -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise DatasetError(f"'{column}' must be a list of {{'{role}', '{content}'}} objects", line)
    turns = []
    for turn in value:
        speaker = turn.get(role) if isinstance(turn, dict) else None
        text = turn.get(content) if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or not (isinstance(text, str | list) or _calls(turn)):
            raise DatasetError(f"each turn in '{column}' needs the strings '{role}' and '{content}'", line)
        known = SHAREGPT_ROLES.get(speaker) if role == "from" else _ROLES.get(speaker)
        if known is None:
            accepted = ", ".join(SHAREGPT_ROLES if role == "from" else ROLES)
            raise DatasetError(f"unknown {role} '{speaker}' in '{column}'; accepted are {accepted}", line)
        if len(turn) == 2 and isinstance(text, str) and speaker != _CALL:  # most turns, in a third of the time
            turns.append(Message(known, text))
        elif role == "from" and speaker == _CALL:
            turns.append(row_turns.message({**turn, CALLS[0]: text}, known, None, column, line))
        else:
            turns.append(row_turns.message(turn, known, text, column, line))
    return tuple(turns)


def _calls(turn: dict[str, Any]) -> bool:
    return any(not is_empty(turn.get(key)) for key in CALLS)


def _conversation(turns: tuple[Message, ...], line: int, given: int = 0) -> Row:
    if any(turn.train for turn in turns[:given]):
        raise DatasetError("has a turn in 'prompt' that asks to be trained on; move it into 'completion'", line)
    if not any(turn.train or (turn.role == "assistant" and turn.said.strip()) for turn in turns[given:]):
        raise DatasetError("has no assistant turn to learn from; add one or remove the row", line)
    return Row(messages=turns, given=given)
