"""The answers file of an evaluation: JSON Lines, the same bytes for the same answers.

The first line says how many lines of each kind follow: one for each prompt, one for each passage of general text, one
for each fixed prompt, one for each task of the user, one for each item of its benchmarks, and one for each prompt whose
answers a judge model has compared.
The worker writes it, and the server reads it line by line, each with a maximum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.shared import answer_lines, judge_prompt
from worker.shared.benchmark_list import BENCHMARKS, MAX_ITEMS
from worker.shared.evaluation_spec import MAX_PROMPTS, MAX_TASKS
from worker.shared.evaluation_units import FIXED, PASSAGES, Arm, Measure
from worker.shared.row_formats import ROLES
from worker.shared.tasks import Task, fixed_sha256
from worker.shared.wire import Count, Sha256, Storable

WITH_JUDGE, WITH_BENCHMARKS, VERSION, FIRST_VERSION = 4, 3, 2, 1
"""The first version has neither the rows' own answers nor tasks. Evaluations that began with it end with it.

Only a file with benchmarks has the third one, and only a file with a judge model the fourth."""
MAX_FILE_BYTES = 96 * 2**20
MAX_PROMPT_BYTES = 64 * 2**10
"""Bytes of a prompt as JSON."""
MAX_ANSWER_BYTES = 24 * 2**10
"""Bytes of an answer as JSON. A longer one is cut and counts as truncated, so that a whole file fits."""
MAX_OWN_BYTES = 8 * 2**10
"""Bytes of a row's own answer as JSON. A longer one is cut."""
MAX_ITEM_BYTES = 2 * 2**10
"""Bytes of the answer to an item of a benchmark as JSON. A longer one is cut."""
MAX_SAID_BYTES = 2**10
"""Bytes of what a judge model says of one pair as JSON. A longer text is cut."""
MAX_TURNS = 1_000
_MAX_LINE = MAX_PROMPT_BYTES + 2 * MAX_ANSWER_BYTES + MAX_OWN_BYTES + 4_096
"""A line with a check has less, because a check has less than a prompt."""

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


def _or_left_out(default: object) -> Any:
    """A field that the first version does not have."""
    return Field(default=default, exclude_if=lambda value: value == default)


class BenchmarkHead(_Record):
    """A benchmark: how many items were asked, and how many were not because they are too long.

    `harness` is the program that asked them, with its version. `chat`: with the model's chat template.
    """

    name: Annotated[Storable, Field(max_length=100)]
    items: Annotated[int, Field(ge=0, le=MAX_ITEMS)]
    unasked: Annotated[int, Field(ge=0, le=MAX_ITEMS)]
    harness: Annotated[Storable, Field(max_length=100)]
    chat: bool


class JudgeHead(_Record):
    """The judge model: the hash of its files, the version of what it was asked, and the pairs with two answers."""

    sha256: Sha256
    prompt_version: Annotated[int, Field(ge=1, lt=2**31)]
    pairs: Annotated[int, Field(ge=0, le=MAX_PROMPTS)]


class Head(_Record):
    """The first line. `answers` is the version of the file.

    `fixed` and `tasks` count lines, `unasked` the tasks without one, because their prompts are too long.
    """

    answers: Count = FIRST_VERSION
    prompts: Annotated[int, Field(ge=1, le=MAX_PROMPTS)]
    passages: Annotated[int, Field(ge=PASSAGES, le=PASSAGES)] = PASSAGES
    left_out: LeftOut = LeftOut()
    fixed: Annotated[int, Field(ge=0, le=FIXED)] = _or_left_out(0)
    fixed_sha256: Sha256 | None = _or_left_out(None)
    tasks: Annotated[int, Field(ge=0, le=MAX_TASKS)] = _or_left_out(0)
    unasked: Annotated[int, Field(ge=0, le=MAX_TASKS)] = _or_left_out(0)
    benchmarks: Annotated[tuple[BenchmarkHead, ...], Field(max_length=len(BENCHMARKS))] = _or_left_out(())
    judge: JudgeHead | None = _or_left_out(None)


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

    @property
    def differs(self) -> bool:
        """Whether the two answers differ."""
        return not judge_prompt.are_identical(self.base.text, self.adapter.text)


class PassageLoss(_Record):
    """The mean loss of each arm on one passage, in nats per token."""

    passage: Count
    base: Loss
    adapter: Loss


class TaskAnswers(_Record):
    """The answers of both arms to the task in `line` of its file. Without a check, no program judges them."""

    line: Count
    check: dict[str, Any] | None
    base: ArmAnswer
    adapter: ArmAnswer


class ItemAnswer(_Record):
    """Whether the answer of one arm to an item is right. `answer` is its text, if the model has written one."""

    correct: bool
    answer: Annotated[Storable, Field(max_length=MAX_ITEM_BYTES)] = ""


class ItemAnswers(_Record):
    """The answers of both arms to the item with this number, from 0, in the file of a benchmark's items."""

    benchmark: Annotated[Storable, Field(max_length=100)]
    item: Count
    base: ItemAnswer
    adapter: ItemAnswer


class Said(_Record):
    """What a judge model has said of one pair in one order, with the tokens of request and answer."""

    text: Annotated[Storable, Field(max_length=MAX_SAID_BYTES)]
    tokens: Count


class JudgedPair(_Record):
    """What a judge model has said of both answers to the prompt `pair`, with the one or the other first.

    None: the request was too long for the judge.
    """

    pair: Count
    adapter_first: Said | None
    base_first: Said | None


@dataclass(frozen=True, kw_only=True)
class AnswersFile:
    """What a file says.

    `fixed` are the answers to the fixed prompts, `tasks` those to the user's tasks, `items` those of its benchmarks,
    and `judged` what a judge model says of each pair of different answers.
    """

    head: Head
    answered: tuple[Answered, ...]
    losses: tuple[PassageLoss, ...]
    fixed: tuple[TaskAnswers, ...] = ()
    tasks: tuple[TaskAnswers, ...] = ()
    items: tuple[ItemAnswers, ...] = ()
    judged: tuple[JudgedPair, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AskedBenchmark:
    """A benchmark whose items count from `first` on. `asked` are the numbers of those that were, from 0."""

    name: str
    first: int
    items: int
    asked: Sequence[int]
    harness: str
    chat: bool

    @property
    def head(self) -> BenchmarkHead:
        """Its part of the first line."""
        unasked = self.items - len(self.asked)
        return BenchmarkHead(
            name=self.name, items=len(self.asked), unasked=unasked, harness=self.harness, chat=self.chat
        )


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a file has beyond the first version.

    The own answer of each prompt's row, each task with its number by which it was asked, the benchmarks, and the hash
    of the judge model. `unasked` counts tasks that were not asked.
    """

    own_answers: Sequence[str]
    fixed: Mapping[int, Task] = field(default_factory=dict[int, Task])
    tasks: Mapping[int, Task] = field(default_factory=dict[int, Task])
    unasked: int = 0
    benchmarks: Sequence[AskedBenchmark] = ()
    judge_sha256: str | None = None


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
    extras: Extras | None = None,
) -> bytes:
    """The file. `results` has a line for each answer and each loss: measure, arm, number, and what the arm gave.

    A line without a measure is an answer to a prompt, or the loss on a passage. Without `extras`, the file has the
    first version.
    """
    found = answer_lines.by_measure(results)
    answers, losses = found[Measure.PROMPTS], found[Measure.PASSAGES]
    lines: list[dict[str, Any]] = [
        {"number": number, "prompt": prompt, **{str(arm): answers[arm, number] for arm in Arm}}
        for number, prompt in enumerate(prompts)
    ]
    head = Head(prompts=len(lines), left_out=left_out)
    of_passages = [{"passage": n, **{str(arm): losses[arm, n]["loss"] for arm in Arm}} for n in range(PASSAGES)]
    of_tasks: list[dict[str, Any]] = []
    if extras is not None:
        for line, text in zip(lines, extras.own_answers, strict=True):
            line["own_answer"] = clipped(text, MAX_OWN_BYTES)
            line["own_loss"] = answer_lines.own_loss(found[Measure.OWN_ANSWERS], line["number"])
        asked = {Measure.FIXED: extras.fixed, Measure.TASKS: extras.tasks}
        of_tasks = [line for measure, tasks in asked.items() for line in answer_lines.of_tasks(tasks, found[measure])]
        counts = {str(measure): len(tasks) for measure, tasks in asked.items()}
        more = {"answers": VERSION, "fixed_sha256": fixed_sha256(), "unasked": extras.unasked, **counts}
        if extras.benchmarks:
            heads = tuple(each.head for each in extras.benchmarks)
            more |= {"answers": WITH_BENCHMARKS, "benchmarks": heads}
            items = found[Measure.BENCHMARKS]
            of_tasks += [line for each in extras.benchmarks for line in answer_lines.of_items(each, items)]
        if extras.judge_sha256 is not None:
            pairs = answer_lines.different(answers)
            judge = JudgeHead(sha256=extras.judge_sha256, prompt_version=judge_prompt.VERSION, pairs=len(pairs))
            more |= {"answers": WITH_JUDGE, "judge": judge}
            of_tasks += answer_lines.of_pairs(pairs, found[Measure.JUDGE])
        head = head.model_copy(update=more)
    return b"".join(map(json_line, (head.model_dump(), *lines, *of_passages, *of_tasks)))


def read(file: IO[bytes]) -> AnswersFile:
    """Read a file of answers. Raises `AnswersError`."""
    lines = _lines(file)
    _, first = next(lines, (1, b""))
    head = _parsed(Head, 1, first)
    if not FIRST_VERSION <= head.answers <= WITH_JUDGE:
        raise AnswersError(
            f"the file of answers has version {head.answers}, this program {WITH_JUDGE}; update Trainhop"
        )
    answered = tuple(_parsed(Answered, number, line) for number, line in islice(lines, head.prompts))
    losses = tuple(_parsed(PassageLoss, number, line) for number, line in islice(lines, head.passages))
    fixed = tuple(_parsed(TaskAnswers, number, line) for number, line in islice(lines, head.fixed))
    tasks = tuple(_parsed(TaskAnswers, number, line) for number, line in islice(lines, head.tasks))
    names = [each.name for each in head.benchmarks for _ in range(each.items)]
    items = tuple(_parsed(ItemAnswers, number, line) for number, line in islice(lines, len(names)))
    pairs = head.judge.pairs if head.judge is not None else 0
    judged = tuple(_parsed(JudgedPair, number, line) for number, line in islice(lines, pairs))
    if [each.benchmark for each in items] != names:
        raise AnswersError("the file of answers does not have the items of the benchmarks that its first line names")
    if (len(fixed), len(tasks)) != (head.fixed, head.tasks):
        raise AnswersError(f"the file of answers does not have {head.fixed} fixed prompts and {head.tasks} tasks")
    if [each.number for each in answered] != list(range(head.prompts)):
        raise AnswersError(f"the file of answers does not have the prompts 0 to {head.prompts - 1} in order")
    if [each.passage for each in losses] != list(range(head.passages)):
        raise AnswersError(f"the file of answers does not have the passages 0 to {head.passages - 1} in order")
    if next(lines, None) is not None:
        raise AnswersError("the file of answers has more lines than its first line says")
    if head.judge is not None and [each.pair for each in judged] != [each.number for each in answered if each.differs]:
        raise AnswersError("the file of answers does not have what the judge model says of each pair of answers")
    return AnswersFile(
        head=head, answered=answered, losses=losses, fixed=fixed, tasks=tasks, items=items, judged=judged
    )


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
