"""Which tokens are trained, for chat templates of many families: compared with spans that are found by other means.

Each row has words that occur nowhere else. An answer begins where the template's own prompt ends (or TRL's marks begin)
and ends with the first end token after its last word. Both are looked for in the text that the library writes, without
the worker's code. A row that the worker refuses in words is no fault. White space behind an end token is not compared.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.methods.chat_templates import Family, families
from benchmarks.report import Figure
from benchmarks.tiny_model import byte_tokenizer
from worker.shared.dataset_spec import RowFormat, TaughtTurns
from worker.shared.job_spec import ENCODING
from worker.shared.row_formats import to_row
from worker.shared.taught_turns import as_taught
from worker.training.encoding import IGNORE, Encoder
from worker.training.interface import PermanentError

EQUAL, REFUSED, WRONG = "equal", "refused", "wrong"
LENGTH = 65_536
_PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "where"}}, "required": ["place"]}
_TOOLS = [{"type": "function", "function": {"name": "qzlook", "description": "looks", "parameters": _PLACE}}]
_Record = dict[str, Any]


def _call(value: str) -> _Record:
    return {"id": "qzcall001", "type": "function", "function": {"name": "qzlook", "arguments": {"place": value}}}


_USER, _MORE = {"role": "user", "content": "qzaska"}, {"role": "user", "content": "qzaskb"}
_SAY, _BYE = {"role": "assistant", "content": "qzsaya"}, {"role": "assistant", "content": "qzsayb"}
_FOUND = {"role": "tool", "name": "qzlook", "tool_call_id": "qzcall001", "content": "qzfound"}
_THOUGHTS = [_SAY | {"reasoning_content": "qzthinka"}, _BYE | {"reasoning_content": "qzthinkb"}]
_CALLS = [{"role": "assistant", "content": "", "tool_calls": [_call("qzplace")]}, _FOUND, _SAY]
_ALL, _FIRST, _LAST = slice(None), slice(0, 1), slice(-1, None)
CASES: dict[str, tuple[_Record, slice]] = {
    "multi-turn": ({"messages": [_USER, _SAY, _MORE, _BYE]}, _ALL),
    "system": ({"messages": [{"role": "system", "content": "qzsystem"}, _USER, _SAY, _MORE, _BYE]}, _ALL),
    "tools": ({"messages": [_USER, *_CALLS, _MORE, _BYE], "tools": _TOOLS}, _ALL),
    "one thought": ({"messages": [_USER, _THOUGHTS[0]]}, _ALL),
    "thoughts": ({"messages": [_USER, _THOUGHTS[0], _MORE, _THOUGHTS[1]]}, _ALL),
    "first turn": ({"messages": [_USER, _SAY, _MORE, _BYE | {"train": False}]}, _FIRST),
    "last turn": ({"messages": [_USER, _SAY, _MORE, _BYE]}, _LAST),
    "last turn after tools": ({"messages": [_USER, *_CALLS], "tools": _TOOLS}, _LAST),
}
"""Rows, and which of their answers are trained."""


def figures(_folder: Path, names: Collection[str] = ()) -> Iterator[Figure]:
    """Cells of the table of templates and cases that are equal, refused in words, and wrong. `names`: only of these."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    chosen = {name: family for name, family in families().items() if not names or name in names}
    found = {(name, case): verdict(family, case) for (name, family), case in product(chosen.items(), CASES)}
    counted = {kind: sum(value == kind for value in found.values()) for kind in (EQUAL, REFUSED)}
    wrong = sorted(f"{name}, {case}: {value}" for (name, case), value in found.items() if value not in (EQUAL, REFUSED))
    yield Figure(name="chat templates", value=len(chosen), bar=">= 30", ok=len(chosen) >= 30)
    yield Figure(name="masks equal to spans found by other means", value=counted[EQUAL], bar="any", ok=True)
    yield Figure(name="rows refused in words", value=counted[REFUSED], bar="any", ok=True)
    yield Figure(name="wrong masks", value=wrong, bar="none", ok=not wrong)


def verdict(family: Family, case: str) -> str:
    """`EQUAL`, `REFUSED`, or what is wrong."""
    record, chosen = CASES[case]
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = family.template
    row = as_taught(to_row(RowFormat.MESSAGES, 1, record), TaughtTurns(mask_history=chosen is _LAST), ENCODING)
    try:
        example = Encoder(tokenizer, LENGTH, train_on_inputs=False, encoding=ENCODING).encode_full(row)
    except PermanentError as error:
        return REFUSED if ";" in str(error) or "refuses a row" in str(error) else f"{WRONG}: refused without a remedy"
    text = tokenizer.decode(example.input_ids)
    if text not in set(_texts(tokenizer, record)):
        return f"{WRONG}: another text than the library's"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"] != example.input_ids:
        return f"{WRONG}: other tokens than the library's"
    spans = _spans(tokenizer, family, record["messages"], text)
    wanted = _marked(text, spans[chosen])
    trained = {
        at
        for (a, b), label in zip(encoded["offset_mapping"], example.labels, strict=True)
        if label != IGNORE
        for at in range(a, b)
    }
    free = {at for _, end in spans for at in range(end, end + len(text[end:]) - len(text[end:].lstrip()))}
    differing = sorted((trained ^ wanted) - free)
    return EQUAL if not differing else f"{WRONG}: at {text[max(0, differing[0] - 20) : differing[0] + 20]!r}"


def _marked(text: str, spans: list[tuple[int, int]]) -> set[int]:
    return {at for begin, end in spans for at in range(begin, min(end, len(text)))}


def _texts(tokenizer: Any, record: _Record) -> Iterator[str]:
    """The row as the library writes it with the template for training, with each way to give a call and a thought."""
    template = _training_template(tokenizer)
    ways = product(("reasoning_content", "thinking", "reasoning"), ("object", "text"), ("", None, "parts"))
    for key, arguments, content in ways:
        messages = [_as_given(turn, key, arguments, content) for turn in deepcopy(record["messages"])]
        try:
            yield tokenizer.apply_chat_template(
                messages, tools=record.get("tools"), chat_template=template, tokenize=False
            )
        except Exception:  # noqa: BLE001  a template may raise anything
            continue


def _training_template(tokenizer: Any) -> str | None:
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None


def _as_given(turn: _Record, key: str, arguments: str, content: str | None) -> _Record:
    if "reasoning_content" in turn:
        turn[key] = turn.pop("reasoning_content")
    for call in turn.get("tool_calls", ()) if arguments == "text" else ():
        call["function"]["arguments"] = '{"place": "qzplace"}'
    if content == "parts":
        turn["content"] = [{"type": "text", "text": turn["content"]}]
    elif not turn["content"]:
        turn["content"] = content
    turn.pop("train", None)
    return turn


def _spans(tokenizer: Any, family: Family, turns: list[_Record], text: str) -> list[tuple[int, int]]:
    """Character ranges of the answers: from the end of the prompt to the end token after their last word."""
    prompt = _prompt(tokenizer)
    spans: list[tuple[int, int]] = []
    at = 0
    for turn in turns:
        words = [word for word in _words(turn) if text.find(word, at) >= 0]
        first = min(text.find(word, at) for word in words)
        last = max(text.find(word, at) + len(word) for word in words)
        if turn["role"] == "assistant":
            spans.append((_begin(text, at, first, prompt, family), _end(text, last, family.ends)))
        at = last
    return spans


def _words(turn: Mapping[str, Any]) -> Iterator[str]:
    yield from (turn[key] for key in ("content", "reasoning_content") if turn.get(key))
    for call in turn.get("tool_calls", ()):
        yield from (call["function"]["name"], "qzplace")


def _prompt(tokenizer: Any) -> str:
    """What the template writes to ask for an answer."""
    asked = [{"role": "user", "content": "qzaska"}]
    without, whole = (
        tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=ask) for ask in (False, True)
    )
    equal = next((n for n, (a, b) in enumerate(zip(without, whole, strict=False)) if a != b), len(without))
    return whole[equal:]


def _begin(text: str, at: int, first: int, prompt: str, family: Family) -> int:
    if family.begin:
        return text.index(family.begin, at, first)
    lead = family.after or prompt
    found = text.find(lead, at, first)
    return found + len(lead) if found >= 0 else first


def _end(text: str, last: int, ends: tuple[str, ...]) -> int:
    found = [(text.find(end, last), -len(end)) for end in ends if text.find(end, last) >= 0]
    begin, length = min(found, default=(len(text), 0))
    return begin - length
