"""The keys of a row and of its turns that no format reads: refused if they change what is taught, else named.

A key is compared without case and punctuation: `chatTemplateKwargs` is `chat_template_kwargs`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, cast

from worker.shared.wire import excerpt

LEARNT = ("assistant", "gpt", "chatgpt", "model")
"""Names of the assistant role in all formats."""
OF_TOOLS = ("tool", "function", "observation")
"""Names of the role of a tool's answer in all formats."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of an assistant's turn with the thought before its answer."""
CALLS = ("tool_calls", "function_call")
TRAINING = ("train", "training")
WEIGHTS = ("weight", "loss_weight")
OF_AN_ANSWER = ("name", "tool_call_id")
"""Keys of a tool's answer that say which call it answers."""
_OF_TOOLS_TURN = (*TRAINING, *WEIGHTS, *OF_AN_ANSWER)
_OF_ANY_TURN = (*TRAINING, *WEIGHTS, *THOUGHTS, *CALLS)
_OF_FUNCTION = ("name", "arguments")
_OF_A_CALL = ("id", "type", "function", *_OF_FUNCTION)

MAX_NAMED = 20
"""Maximum keys that are named. A row of a normal dataset has fewer."""
MAX_NAME = 60
"""Maximum characters of a key that are shown."""

_EMPTY = frozenset({"", "[]", "{}", "null", "none", "nan"})
_YES, _NO = (True,), (False,)
_BAD = (
    "has {key} {value}, but every answer is taught as a good one; remove the row, or the key if the answer is good. "
    "With rl: kto and the type unpaired_preference, a label of true or false is learned from"
)
_WORDS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


MAX_MESSAGE = 1_000


class DatasetError(ValueError):
    """A dataset that cannot be trained on. `line` is 1-based, `None` if the error concerns the whole file."""

    def __init__(self, message: str, line: int | None = None) -> None:
        message = excerpt(message, MAX_MESSAGE)  # it may quote the file
        super().__init__(f"line {line}: {message}" if line is not None else message)
        self.message = message
        self.line = line


class UnusedKeys:
    """Collects the keys of many rows that are not used, in the order in which they are found."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, names: tuple[str, ...]) -> None:
        """Note the unused keys of a row, up to a maximum."""
        if names and len(self._names) < MAX_NAMED:
            self._names.update(dict.fromkeys(names))

    @property
    def names(self) -> tuple[str, ...]:
        """At most `MAX_NAMED` keys."""
        return tuple(self._names)[:MAX_NAMED]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Keys that change what is taught. Their `neutral` values do not. `reason` is said of the row or turn."""

    names: re.Pattern[str]
    reason: str
    neutral: tuple[bool, ...] = ()


def _kind(names: str, reason: str, neutral: tuple[bool, ...] = ()) -> _Kind:
    return _Kind(re.compile(names), reason, neutral)


_KINDS = (
    _kind(
        r"reasoning(content|text|details|trace)?|thinking(content|blocks)?|thoughts?|think|cot|chainofthought|"
        r"scratchpad",
        "has '{key}', a thought that would not be taught; name it 'reasoning_content' in a turn of the assistant, "
        "write it into the text as <think>...</think>, or remove the key",
    ),
    _kind(
        r"train\w*|loss|learn|supervised?|(compute|calculate)loss",
        "has {key} {value}, which is not read there; say 'train': false in a turn that is not to be trained on, or "
        "remove the key",
        _YES,
    ),
    _kind(
        r"\w*weights?|lossscale",
        "has {key} {value}, but what is taught has equal weight; remove the key, or say 'weight': 0 in a turn that is "
        "not to be trained on",
        _YES,
    ),
    _kind(
        r"\w*masks?|masked|ignored?|ignoreloss|skip|exclude|excluded|labels|inputids",
        "has '{key}', but the format of a row decides which text is trained on; say 'train': false in a turn that is "
        "not, or remove the key",
        _NO,
    ),
    _kind(r"label|iscorrect|correct|accepted|isaccepted|isgood|desirable|isdesirable|thumbsup|upvoted", _BAD, _YES),
    _kind(r"bad|isbad|wrong|iswrong|incorrect|isrejected|undesirable|thumbsdown|downvoted", _BAD, _NO),
    _kind(
        r"(image|video|audio)(s|url|urls|path|paths|data)?|media|pixelvalues|attachments?|speech",
        "has '{key}', which is not text; remove the key, and the row if its answer needs it",
    ),
    _kind(
        r"tools?|functions?|availabletools|toolschema|toolchoice",
        "has '{key}', which is not read there; name the schemas of tools 'tools' in a row of messages, or remove the "
        "key",
    ),
    _kind(
        r"paralleltoolcalls",
        "has {key} {value}, which no chat template reads; remove the key, and the row if its answer depends on it",
        _YES,
    ),
    _kind(r"documents?", "has '{key}', which are not supported; remove the column or the row"),
    _kind(
        r"toolcalls?|functioncalls?",
        "has '{key}', a call that is not read there; name it 'tool_calls' in a turn of the assistant, or remove the "
        "key",
    ),
    _kind(
        r"(chat)?template(kwargs|args)?|chattemplate\w*|enablethinking|thinking(mode|budget)|reasoningeffort|"
        r"addgenerationprompt|continuefinalmessage",
        "has '{key}', which would not reach the chat template; remove the key",
    ),
    _kind(
        r"system(prompt|message|text|instruction)?|developer|sysprompt",
        "has '{key}', which is not read there; name it 'system' in a row of messages, or write it into the prompt",
    ),
    _kind(
        r"history|context|demonstrations|fewshot|examples",
        "has '{key}', text that would not be taught; write it into the prompt, or remove the key",
    ),
)
_OF_A_TURN = re.compile(
    r"\w*id|id\w*|name|\w*time\w*|\w*at|\w*date|created\w*|model\w*|source|lang|language|\w*score|rating|rank|"
    r"meta|metadata|info|\w*hash\w*|\w*tokens?|\w*count|turn\w*|index|author|status|endturn|toxic\w*|redacted|"
    r"header|state|country|emotion|intent|category|tags?|topic|type|parent|url|recipient|channel|annotations?|"
    r"detoxify|ip|hashedip"
)
"""Keys of a turn that say where it comes from. Any other key may say how it is to be taught."""


def check_keys(record: Mapping[str, Any], used: Collection[str], turns: Collection[str], line: int) -> tuple[str, ...]:
    """The keys of a row that training does not use. `used` are read by its format, `turns` of them as lists of turns.

    Raises `DatasetError` for one that changes what is taught.
    """
    unused = dict.fromkeys(_of_row(record, used, line))
    for column in turns:
        value = record.get(column)
        if not isinstance(value, list):
            continue
        for turn in value:
            if isinstance(turn, dict):
                unused |= dict.fromkeys(_of_turn(turn, column, line))
    return _one_object(tuple(islice(unused, MAX_NAMED))) if unused else ()


@lru_cache(maxsize=256)
def _one_object(names: tuple[str, ...]) -> tuple[str, ...]:
    """Equal tuples of millions of rows are one in memory."""
    return names


def _of_row(record: Mapping[str, Any], used: Collection[str], line: int) -> Iterator[str]:
    for key, value in record.items():
        if key in used or is_empty(value):
            continue
        kind = _kind_of(key)
        if kind is not None and truth(value) not in kind.neutral:
            raise DatasetError(_said(kind, key, value), line)
        yield _name(key)


def _of_turn(turn: Mapping[str, Any], column: str, line: int) -> Iterator[str]:
    speaker, text = ("from", "value") if column == "conversations" else ("role", "content")
    if len(turn) == 2 and speaker in turn and text in turn:
        return  # most turns
    learnt = turn.get(speaker) in LEARNT
    read = _read_of_a_turn(turn.get(speaker))
    for key, value in turn.items():
        if key in CALLS and not is_empty(value):
            yield from (f"{column}[].{key}[].{_name(each)}" for each in _of_calls(value))
        if key in (speaker, text) or key in read or is_empty(value):
            continue
        if problem := _problem(key, value, learnt):
            raise DatasetError(f"a turn in '{column}' {problem}", line)
        yield f"{column}[].{_name(key)}"


def _of_calls(value: Any) -> Iterator[str]:
    """The keys of calls that are not used. What is not a call is refused where calls are read."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return
    for call in cast("list[Any]", value) if isinstance(value, list) else [value]:
        for part, read in (
            (call, _OF_A_CALL),
            (call.get("function") if isinstance(call, dict) else None, _OF_FUNCTION),
        ):
            if isinstance(part, dict):
                yield from (
                    str(key)
                    for key, each in cast("dict[Any, Any]", part).items()
                    if key not in read and not is_empty(each)
                )


def _read_of_a_turn(speaker: Any) -> tuple[str, ...]:
    """The keys that are read of a turn, besides its role and its text."""
    # Thoughts and calls of others than the assistant are refused where they are read.
    return _OF_TOOLS_TURN if speaker in OF_TOOLS else _OF_ANY_TURN


def _problem(key: str, value: Any, learnt: bool) -> str:
    kind, meant = _kind_of(key), truth(value)
    if kind is None:
        unread = f"has '{_name(key)}', which no format reads; write it into the text, or remove the key"
        return "" if _is_of_a_turn(key) else unread
    # A turn of another role is left out of the loss, as the key asks.
    is_harmless = meant in kind.neutral or (not learnt and kind.neutral == _YES and meant is False)
    return "" if is_harmless else _said(kind, key, value)


def _said(kind: _Kind, key: str, value: Any) -> str:
    return kind.reason.format(key=_name(key), value=str(value)[:MAX_NAME])


@lru_cache(maxsize=1024)
def _kind_of(key: str) -> _Kind | None:
    plain = _plain(key)
    return next((kind for kind in _KINDS if kind.names.fullmatch(plain)), None)


@lru_cache(maxsize=1024)
def _is_of_a_turn(key: str) -> bool:
    return _OF_A_TURN.fullmatch(_plain(key)) is not None


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", str(key)[:MAX_NAME]).lower()


def _name(key: str) -> str:
    return str(key)[:MAX_NAME]


def is_empty(value: Any) -> bool:
    """Whether a value says nothing. A table has such values where another row has something."""
    if isinstance(value, str):
        return value.strip().lower() in _EMPTY
    # A table of pandas has NaN where nothing is.
    return value is None or value in ([], {}) or (isinstance(value, float) and value != value)  # noqa: PLR0124


def truth(value: Any) -> bool | None:
    """What a value says as yes or no. None if it says neither."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
