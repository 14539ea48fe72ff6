"""The answers file of an evaluation: JSON Lines, the same bytes for the same answers.

The first line says how many lines of each kind follow: one for each prompt, then one for each passage of general text.
The worker writes it, and the server reads it line by line, each with a maximum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.shared.evaluation_units import PASSAGES, Arm, Measure
from worker.shared.job_spec import MAX_PROMPTS
from worker.shared.row_formats import ROLES
from worker.shared.wire import Count, Storable

VERSION, FIRST_VERSION = 2, 1
"""The first version has neither the rows' own answers nor the loss on them. Evaluations that began with it end with it.
"""
MAX_FILE_BYTES = 64 * 2**20
MAX_PROMPT_BYTES = 64 * 2**10
"""Bytes of a prompt as JSON."""
MAX_ANSWER_BYTES = 24 * 2**10
"""Bytes of an answer as JSON. A longer one is cut and counts as truncated, so that a whole file fits."""
MAX_OWN_BYTES = 8 * 2**10
"""Bytes of a row's own answer as JSON. A longer one is cut."""
MAX_TURNS = 1_000
_MAX_LINE = MAX_PROMPT_BYTES + 2 * MAX_ANSWER_BYTES + MAX_OWN_BYTES + 4_096

M = TypeVar("M", bound=BaseModel)


class AnswersError(Exception):
    """A file of answers that cannot be read. The message gives the reason in one sentence."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LeftOut(_Record):
    """Rows that gave no prompt: equal to an earlier prompt, without turns before the answer, or too long."""

    repeated: Count = 0
    without_prompt: Count = 0
    too_long: Count = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.repeated + self.without_prompt + self.too_long


class Head(_Record):
    """The first line. `answers` is the version of the file."""

    answers: Count = FIRST_VERSION
    prompts: Annotated[int, Field(ge=1, le=MAX_PROMPTS)]
    passages: Annotated[int, Field(ge=PASSAGES, le=PASSAGES)] = PASSAGES
    left_out: LeftOut = LeftOut()


class Turn(_Record):
    """One turn of a prompt."""

    role: Annotated[str, Field(pattern=f"^({'|'.join(ROLES)})$")]
    content: Storable


class ArmAnswer(_Record):
    """The text of one arm. `truncated`: it ended at the limit. `leaked`: it has a control token before its end."""

    text: Annotated[Storable, Field(max_length=MAX_ANSWER_BYTES)]
    tokens: Count
    truncated: bool
    leaked: bool


Loss = Annotated[float, Field(ge=0, le=1e6)]


class OwnLoss(_Record):
    """The mean loss of each arm on the trained tokens of a row, in nats per token."""

    tokens: Annotated[int, Field(ge=1, lt=2**31)]
    base: Loss
    adapter: Loss


class Answered(_Record):
    """A prompt with the answers of both arms. `number` counts from 0.

    `own_answer` is the one in the row, empty where it has none, and `own_loss` the loss on it.
    """

    number: Count
    prompt: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=MAX_TURNS)]
    base: ArmAnswer
    adapter: ArmAnswer
    own_answer: Annotated[Storable, Field(max_length=MAX_OWN_BYTES)] = ""
    own_loss: OwnLoss | None = None


class PassageLoss(_Record):
    """The mean loss of each arm on one passage, in nats per token."""

    passage: Count
    base: Loss
    adapter: Loss


@dataclass(frozen=True, kw_only=True)
class AnswersFile:
    """What a file says."""

    head: Head
    answered: tuple[Answered, ...]
    losses: tuple[PassageLoss, ...]


def json_line(value: Mapping[str, Any]) -> bytes:
    """One line of canonical JSON."""
    return (json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n").encode()


def json_bytes(value: Any) -> int:
    """Bytes of a value as JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def clipped(text: str, most: int = MAX_ANSWER_BYTES) -> str:
    """The beginning of an answer that fits into the file, without characters that cannot be stored."""
    kept = text.replace("\x00", "\ufffd").encode(errors="replace").decode()
    while json_bytes(kept) > most:
        kept = kept[: len(kept) * 9 // 10]
    return kept


def written(
    prompts: Iterable[list[dict[str, str]]],
    left_out: LeftOut,
    results: bytes,
    own_answers: Sequence[str] | None = None,
) -> bytes:
    """The file. `results` has a line for each answer and each loss: measure, arm, number, and what the arm gave.

    A line without a measure is an answer to a prompt, or the loss on a passage. Without `own_answers`, the file has the
    first version.
    """
    found = _by_measure(results)
    answers, losses = found[Measure.PROMPTS], found[Measure.PASSAGES]
    lines: list[dict[str, Any]] = [
        {"number": number, "prompt": prompt, **{str(arm): answers[arm, number] for arm in Arm}}
        for number, prompt in enumerate(prompts)
    ]
    version = FIRST_VERSION
    if own_answers is not None:
        version = VERSION
        for line, text in zip(lines, own_answers, strict=True):
            line["own_answer"] = clipped(text, MAX_OWN_BYTES)
            line["own_loss"] = _own_loss(found[Measure.OWN_ANSWERS], line["number"])
    head = Head(answers=version, prompts=len(lines), left_out=left_out).model_dump()
    of_passages = [{"passage": n, **{str(arm): losses[arm, n]["loss"] for arm in Arm}} for n in range(PASSAGES)]
    return b"".join(map(json_line, (head, *lines, *of_passages)))


_Results = dict[tuple[str, int], dict[str, Any]]


def _by_measure(results: bytes) -> dict[Measure, _Results]:
    """What each arm gave, by what was measured, arm and number."""
    found: dict[Measure, _Results] = {measure: {} for measure in Measure}
    for line in results.splitlines():
        one = json.loads(line)
        measure = Measure(one.pop("measure", Measure.PASSAGES if "loss" in one else Measure.PROMPTS))
        found[measure][one.pop("arm"), one.pop("number")] = one
    return found


def _own_loss(found: _Results, number: int) -> dict[str, Any] | None:
    """None unless both arms have a loss."""
    lines = [(str(arm), found[arm, number]) for arm in Arm if (arm, number) in found]
    if len(lines) < len(Arm) or any(line["loss"] is None for _, line in lines):
        return None
    return {"tokens": lines[0][1]["tokens"], **{arm: line["loss"] for arm, line in lines}}


def read(file: IO[bytes]) -> AnswersFile:
    """Read a file of answers. Raises `AnswersError`."""
    lines = _lines(file)
    _, first = next(lines, (1, b""))
    head = _parsed(Head, 1, first)
    if not FIRST_VERSION <= head.answers <= VERSION:
        raise AnswersError(f"the file of answers has version {head.answers}, this program {VERSION}; update Trainhop")
    answered = tuple(_parsed(Answered, number, line) for number, line in islice(lines, head.prompts))
    losses = tuple(_parsed(PassageLoss, number, line) for number, line in islice(lines, head.passages))
    if [each.number for each in answered] != list(range(head.prompts)):
        raise AnswersError(f"the file of answers does not have the prompts 0 to {head.prompts - 1} in order")
    if [each.passage for each in losses] != list(range(head.passages)):
        raise AnswersError(f"the file of answers does not have the passages 0 to {head.passages - 1} in order")
    if next(lines, None) is not None:
        raise AnswersError("the file of answers has more lines than its first line says")
    return AnswersFile(head=head, answered=answered, losses=losses)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), 1):
        if len(line) > _MAX_LINE:
            raise AnswersError(f"line {number} of the file of answers is longer than {_MAX_LINE} bytes")
        yield number, line


def _parsed(kind: type[M], number: int, line: bytes) -> M:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        place = f" at {where}" if where else ""
        raise AnswersError(f"line {number} of the file of answers is not valid{place}: {fault['msg']}") from None
