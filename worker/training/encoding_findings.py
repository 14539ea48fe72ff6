"""What a model will do differently from what its rows teach: findings that do not stop a job.

Compared are the first rows, because a finding follows from the chat template and the tokenizer, seldom from a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from worker.shared.counted_words import many
from worker.shared.rows import Row
from worker.training.encoding import Encoder
from worker.training.end_tokens import stop_tokens
from worker.training.interface import PermanentError
from worker.training.spans import common_start

ROWS_COMPARED = 64
"""Rows that are compared. They take about as long as the tokenisation of as many rows, three times."""
_SHOWN = 30
"""Maximum characters of a text that a finding shows."""


def findings(encoder: Encoder, tokenizer: Any, rows: Iterable[Row]) -> tuple[str, ...]:
    """Sentences about the first rows, one of each kind. Rows that cannot be encoded have none."""
    found: dict[str, str] = {}
    stops = stop_tokens(tokenizer)
    thoughts = dropped = 0
    for row in islice(rows, ROWS_COMPARED):
        with contextlib.suppress(PermanentError):
            for kind, sentence in _of_row(encoder, tokenizer, row, stops):
                if sentence:
                    found.setdefault(kind, sentence)
            thoughts += sum(bool(turn.thought.strip()) for turn in row.messages)
            dropped += encoder.dropped_thoughts(row)
    return (*found.values(), *_of_thoughts(thoughts, dropped))


def _of_row(encoder: Encoder, tokenizer: Any, row: Row, stops: frozenset[int]) -> Iterator[tuple[str, str]]:
    """Kind and sentence, which is empty if there is no such finding."""
    example = encoder.encode_full(row)
    if not row.messages:
        yield "no end token", _of_missing_end(tokenizer)
        yield "joined tokens", _of_text_prompt(encoder, row, example.input_ids)
        return
    turns = [turn for turn in row.taught if row.messages[turn].role == "assistant"]
    for turn in dict.fromkeys((turns[0], turns[-1])) if turns else ():
        yield "prompt", _of_prompt(encoder, tokenizer, row, turn, example.input_ids)
    yield "end", _of_end(tokenizer, example.labels, stops)
    yield "templates", _of_templates(encoder, row)
    yield "beginnings", _of_beginnings(encoder, row, turns)


def _of_thoughts(thoughts: int, dropped: int) -> Iterator[str]:
    if dropped:
        yield (
            f"The chat template leaves out {dropped} of {many(thoughts, 'thought')} in the first rows, so the model "
            "learns these answers without a thought. Use rows with one answer each, and the earlier turns as their "
            "prompt."
        )


def _of_missing_end(tokenizer: Any) -> str:
    if tokenizer.eos_token_id is not None:
        return ""
    return "The tokenizer has no end token, so the model does not learn to stop. Limit the length of its answers."


def _of_text_prompt(encoder: Encoder, row: Row, ids: list[int]) -> str:
    prompt = encoder.prompt_ids(row.prompt, chat=False) if row.prompt else []
    if ids[: len(prompt)] == prompt:
        return ""
    return (
        "The tokenizer joins the end of a prompt and the start of its completion to one token, but a prompt alone "
        "ends differently. Let prompts end without white space, and completions begin with it."
    )


def _of_prompt(encoder: Encoder, tokenizer: Any, row: Row, turn: int, ids: list[int]) -> str:
    before = row.messages[:turn]
    if before and encoder.training_template:
        own, written = (write(before, tools=row.tools) for write in (encoder.own_text_of, encoder.text_of))
        if own != written:
            return ""  # the earlier turns differ, and `_of_templates` says so
    prompt = encoder.answer_prompt(before, row.tools)
    shared = common_start(ids, prompt)
    if shared == len(prompt):
        return ""
    return (
        f"A prompt ends with {_shown(tokenizer, prompt[shared:])}, where rows of the data have "
        f"{_shown(tokenizer, ids[shared:])}, so answers begin where nothing was trained. "
        "Let the answers in the data begin as the prompt ends, or switch thinking off when you use the adapter."
    )


def _of_end(tokenizer: Any, labels: list[int], stops: frozenset[int]) -> str:
    trained = [label for label in labels if label >= 0]
    # Behind the end token, templates write at most a line break and the end of the whole conversation.
    if not trained or not stops or stops & set(trained[-4:]):
        return ""
    return (
        f"Answers end with {_shown(tokenizer, trained[-4:], last=True)}, but the model stops only at "
        f"{' or '.join(repr(tokenizer.decode([number])) for number in sorted(stops)[:3])}, which is not trained, so it "
        "may not stop. Sample answers, evaluations and the generation_config.json of the exported adapter stop at the "
        "token of the chat template too. Set it as end token where you use the adapter, or train the instruction-tuned "
        "model."
    )


def _of_templates(encoder: Encoder, row: Row) -> str:
    if encoder.training_template is None:
        return ""
    text, own = (write(row.messages, tools=row.tools) for write in (encoder.text_of, encoder.own_text_of))
    if text == own:
        return ""
    at = common_start(text, own)
    return (
        "Rows are written with TRL's training template, which writes all answers of a conversation alike: it has "
        f"{_excerpt(text[at:])} where the model's own chat template has {_excerpt(own[at:])}. Sample prompts and "
        "the exported adapter keep the model's own."
    )


def _of_beginnings(encoder: Encoder, row: Row, turns: list[int]) -> str:
    text = encoder.text_of(row.messages, tools=row.tools)
    begun = []
    for turn, (begin, _) in zip(turns, encoder.assistant_spans(row, text), strict=True):
        content = row.messages[turn].content.strip()
        at = text.find(content, begin) if content else -1
        if at >= 0:
            begun.append(text[begin:at])
    if len({lead.strip() for lead in begun}) < 2:
        return ""
    return (
        f"The chat template begins the last answer of a row with {_excerpt(begun[-1])} and earlier answers with "
        f"{_excerpt(begun[0])}, so the model learns both. Use rows with one answer each, and the earlier turns as "
        "their prompt."
    )


def _shown(tokenizer: Any, ids: list[int], *, last: bool = False) -> str:
    text = tokenizer.decode(ids[-8:] if last else ids[:8])
    return repr(text[-_SHOWN:] if last else text[:_SHOWN])


def _excerpt(text: str) -> str:
    return repr(text[:_SHOWN]) if text.strip() else "nothing"
