"""The answers file of an evaluation: JSON Lines, the same bytes for the same answers.

The first line says how many lines of each kind follow: one for each prompt, then one for each passage of general text.
The worker writes it, and the server reads it line by line, each with a maximum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.shared.evaluation_units import PASSAGES, Arm
from worker.shared.job_spec import MAX_PROMPTS
from worker.shared.row_formats import ROLES
from worker.shared.wire import Count, Storable

VERSION = 1
MAX_FILE_BYTES = 64 * 2**20
MAX_PROMPT_BYTES = 64 * 2**10
"""Bytes of a prompt as JSON."""
MAX_ANSWER_BYTES = 24 * 2**10
"""Bytes of an answer as JSON. A longer one is cut and counts as truncated, so that a whole file fits."""
MAX_TURNS = 1_000
_MAX_LINE = MAX_PROMPT_BYTES + 2 * MAX_ANSWER_BYTES + 4_096

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
    """The first line."""

    answers: Count = VERSION
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


class Answered(_Record):
    """A prompt with the answers of both arms. `number` counts from 0."""

    number: Count
    prompt: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=MAX_TURNS)]
    base: ArmAnswer
    adapter: ArmAnswer


Loss = Annotated[float, Field(ge=0, le=1e6)]


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


def clipped(text: str) -> str:
    """The beginning of an answer that fits into the file, without characters that cannot be stored."""
    kept = text.replace("\x00", "\ufffd").encode(errors="replace").decode()
    while json_bytes(kept) > MAX_ANSWER_BYTES:
        kept = kept[: len(kept) * 9 // 10]
    return kept


def written(prompts: Iterable[list[dict[str, str]]], left_out: LeftOut, results: bytes) -> bytes:
    """The file. `results` has a line for each answer and each loss: arm, number, and what the arm gave."""
    answers: dict[tuple[Any, Any], Any] = {}
    losses: dict[tuple[Any, Any], Any] = {}
    for line in results.splitlines():
        found = json.loads(line)
        place = (found.pop("arm"), found.pop("number"))
        if "loss" in found:
            losses[place] = found["loss"]
        else:
            answers[place] = found
    lines = [
        {"number": number, "prompt": prompt, **{str(arm): answers[arm, number] for arm in Arm}}
        for number, prompt in enumerate(prompts)
    ]
    head = Head(prompts=len(lines), left_out=left_out).model_dump()
    of_passages = [{"passage": n, **{str(arm): losses[arm, n] for arm in Arm}} for n in range(PASSAGES)]
    return b"".join(map(json_line, (head, *lines, *of_passages)))


def read(file: IO[bytes]) -> AnswersFile:
    """Read a file of answers. Raises `AnswersError`."""
    lines = _lines(file)
    _, first = next(lines, (1, b""))
    head = _parsed(Head, 1, first)
    if head.answers != VERSION:
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
