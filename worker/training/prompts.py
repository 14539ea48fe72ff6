"""The prompts of an evaluation: everything before the last answer of a row, as text and as tokens."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worker.shared.answers_file import MAX_PROMPT_BYTES, MAX_TURNS, LeftOut, json_bytes
from worker.shared.copies_of_rows import split_rows
from worker.shared.dataset_files import DatasetError, Message, Row, read_rows
from worker.shared.dataset_spec import RowFormat
from worker.shared.job_spec import JobSpec
from worker.shared.taught_turns import as_taught
from worker.training.data import load_rows, trained_tokens
from worker.training.encoding import Encoder, Example
from worker.training.interface import PermanentError
from worker.training.model_limits import ModelLimits

_CONVERSATIONS = frozenset({RowFormat.MESSAGES, RowFormat.SHAREGPT, RowFormat.ALPACA})


@dataclass(frozen=True)
class Prompt:
    """Turns up to the answer, and their token ids up to its start.

    `own_answer` is the row's own one (empty: it has none), and `example` the row as it would be trained on. It is None
    without a trained token, and where the model cannot read the row.
    """

    turns: tuple[Message, ...]
    ids: list[int]
    own_answer: str = ""
    example: Example | None = None

    def as_json(self) -> list[dict[str, str]]:
        """The turns as plain data."""
        return [{"role": turn.role, "content": turn.said} for turn in self.turns]


def candidates(paths: Sequence[Path], spec: JobSpec) -> list[Row]:
    """The rows whose prompts may be asked, in an order that depends on the job alone.

    Validation rows come in the order of a hash, so that the first ones are a sample of all. The rows of a prompt file
    keep their order. Raises `PermanentError` if a file is invalid.
    """
    asked = spec.evaluation
    assert asked is not None
    if asked.prompts is None:
        rows = load_rows(paths, spec)
        return [rows[number] for number in sorted(split_rows(rows, spec)[1].tolist(), key=lambda n: _rank(spec, n))]
    try:
        read = read_rows(paths[0], asked.prompts.type, asked.prompts.file_format)
        return [as_taught(row, asked.prompts.taught, spec.encoding) for row in read]
    except DatasetError as error:
        raise PermanentError(f"the prompts {asked.prompts.path}: {error}") from error


def _rank(spec: JobSpec, number: int) -> bytes:
    return hashlib.sha256(f"{spec.seed} {number}".encode()).digest()


def choose(
    rows: Sequence[Row], spec: JobSpec, encoder: Encoder, room: int, limits: ModelLimits
) -> tuple[list[Prompt], LeftOut]:
    """The first `max_prompts` prompts that can be asked, each once. A prompt has at most `room` tokens.

    Raises `PermanentError` if there is none, or if the chat template refuses one.
    """
    assert spec.evaluation is not None
    chosen: dict[tuple[object, ...], Prompt] = {}
    repeated = without_prompt = too_long = 0
    for row in rows:
        if len(chosen) == spec.evaluation.max_prompts:
            break
        turns = _before_the_answer(row)
        if not turns:
            without_prompt += 1
        elif (turns, row.tools) in chosen:
            repeated += 1
        elif (prompt := _prompt(turns, row, spec, encoder)) is None or len(prompt.ids) > room:
            too_long += 1
        else:
            chosen[turns, row.tools] = (
                _with_own_answer(prompt, row, encoder, limits) if spec.evaluation.measures else prompt
            )
    left_out = LeftOut(repeated=repeated, without_prompt=without_prompt, too_long=too_long)
    if not chosen:
        raise PermanentError(
            f"none of the {len(rows)} rows gives a prompt: {without_prompt} have no turn before their answer, and "
            f"{too_long} have more than {room} tokens; use shorter prompts or a smaller max_new_tokens"
        )
    return list(chosen.values()), left_out


def _before_the_answer(row: Row) -> tuple[Message, ...]:
    if not row.messages:
        return (Message("user", row.prompt),) if row.prompt.strip() else ()
    answers = _answers(row)
    return row.messages[: answers[-1]] if answers else row.messages


def _answers(row: Row) -> list[int]:
    return [place for place, turn in enumerate(row.messages) if turn.role == "assistant"]


def _with_own_answer(prompt: Prompt, row: Row, encoder: Encoder, limits: ModelLimits) -> Prompt:
    if row.desirable is False:  # no answer to compare with
        return prompt
    answers = _answers(row)
    text = row.messages[answers[-1]].said if answers else row.text
    example = None
    with contextlib.suppress(PermanentError):  # a row of a file of prompts need not be one to train on
        example = encoder.encode(row)
        limits.check(example.input_ids, "the row")
    if example is None or not trained_tokens([example]):
        return replace(prompt, own_answer=text)
    return replace(prompt, own_answer=text, example=example)


def asks_as_chat(rows: Sequence[Row], spec: JobSpec) -> bool:
    """Whether prompts are asked with the chat template: these rows or those of the job are conversations."""
    return any(row.messages for row in rows[:1]) or any(dataset.type in _CONVERSATIONS for dataset in spec.datasets)


def _prompt(turns: tuple[Message, ...], row: Row, spec: JobSpec, encoder: Encoder) -> Prompt | None:
    """None if the turns are too long to be stored."""
    chat = asks_as_chat([row], spec)
    prompt = Prompt(turns, [])
    if len(turns) > MAX_TURNS or json_bytes(prompt.as_json()) > MAX_PROMPT_BYTES:
        return None
    return Prompt(
        turns, encoder.answer_prompt(turns, row.tools) if chat else encoder.prompt_ids(row.prompt, chat=False)
    )
