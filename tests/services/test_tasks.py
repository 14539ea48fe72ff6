"""Tasks that a program checks: what is refused at submit, what the report says, and that no check stops the server."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.domain.errors import ConflictError, InvalidError
from orchestrator.services import datasets, model_cards
from orchestrator.services.evaluation_report import report_of
from orchestrator.services.task_scores import task_scores, task_warnings
from tests.helpers.verdicts import evaluate
from tests.helpers.world import World
from tests.services.test_evaluations import answers, running, started, trained
from tests.services.test_models import trained as trained_to_the_end
from worker.shared import answers_file
from worker.shared.answers_file import AnswersFile
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.evaluation_spec import MEASURES
from worker.shared.evaluation_units import Arm
from worker.shared.job_spec import JobSpec
from worker.shared.rows import Message
from worker.shared.tasks import Task, fixed_prompts, fixed_sha256

YES: dict[str, Any] = {"type": "regex", "pattern": "^yes$"}
GOOD = {"prompt": "Say yes.", "check": YES}
BAD = {"prompt": "x", "check": {"type": "regex", "pattern": "("}}
SLOW: dict[str, Any] = {"$ref": "#/$defs/a0", "$defs": {"a40": {"type": "object"}}}
SLOW["$defs"] |= {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
"""A schema of two kilobytes that takes 2^40 steps."""


def tasks_file(world: World, *records: Any, name: str = "tasks.jsonl") -> str:
    """An uploaded file, checked as an upload is. Returns its sha256."""
    path = world.folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return datasets.bring(world.ctx, "alice", path, name, RowFormat.TASK).dataset.sha256


def with_answers(measure: str, texts: Mapping[int, tuple[str, str]], *, truncated: bool = False) -> bytes:
    """What the units of tasks give."""
    plain = {"tokens": 3, "truncated": truncated, "leaked": False}
    return b"".join(
        answers_file.json_line({"measure": measure, "arm": arm, "number": number, "text": text} | plain)
        for number, pair in texts.items()
        for arm, text in zip(Arm, pair, strict=True)
    )


def found(checks: list[dict[str, Any]], texts: list[tuple[str, str]], **more: Any) -> AnswersFile:
    """The answers of an evaluation with these tasks, in a real file."""
    how = {"truncated": more.pop("truncated", False)}
    tasks = {n: Task(line=n + 1, turns=(Message("user", "?"),), is_text=True, check=c) for n, c in enumerate(checks)}
    lines = with_answers("tasks", dict(enumerate(texts)), **how)
    return answers_file.read(io.BytesIO(answers(40, more=lines, tasks={"tasks": tasks} | more)))


def fixed(answer: Any) -> AnswersFile:
    """The same with the fixed prompts. `answer` gives both answers to one of them."""
    asked = dict(enumerate(fixed_prompts()))
    lines = with_answers("fixed", {number: answer(number, task) for number, task in asked.items()})
    return answers_file.read(io.BytesIO(answers(40, more=lines, tasks={"fixed": asked})))


def test_a_file_of_tasks_is_asked_after_everything_else(world: World) -> None:
    """Its rows go to the machine beside the training data, and it is not deleted while they are needed."""
    job = trained(world)
    sha256 = tasks_file(world, GOOD, GOOD | {"prompt": "Say yes again."})
    made = started(world, job, tasks=DatasetSpec(path=f"sha256:{sha256}"))
    assert world.job(made).total_steps == 2 * 6 + 2 * 4 + 2 * 2 + 2 * 4 + 2
    worker = running(world)
    assert worker.assignment is not None
    assert worker.assignment.datasets[-1].sha256 == sha256
    assert len(worker.assignment.datasets) == 2
    asked = worker.assignment.spec.evaluation
    assert asked is not None
    assert asked.tasks is not None
    assert (asked.tasks.rows, asked.tasks.type) == (2, RowFormat.TASK)


def test_tasks_that_cannot_be_used_are_refused_at_submit_with_their_line(world: World) -> None:
    """Guard: without `_tasks`, a bad pattern was found after both models had answered."""
    job = trained(world)

    def refused(sha256: str) -> InvalidError:
        with pytest.raises(InvalidError) as error:
            started(world, job, tasks=DatasetSpec(path=f"sha256:{sha256}"))
        assert error.value.problems[0][0] == "/tasks/path"
        return error.value

    assert "line 2: the pattern '(' cannot be used" in str(refused(tasks_file(world, GOOD, BAD)))
    schema = {"prompt": "x", "check": {"type": "json_schema", "schema": {"type": "text"}}}
    assert "line 1: the schema is not valid" in str(refused(tasks_file(world, schema)))
    many = [GOOD | {"prompt": str(number)} for number in range(501)]
    assert "has 501 tasks. An evaluation may have 500" in str(refused(tasks_file(world, *many)))
    assert "Upload the file first" in str(refused("3" * 64))
    rows = world.folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    uploaded = datasets.bring(world.ctx, "alice", rows, "rows.jsonl").dataset.sha256
    assert "line 1: is a prompt_completion row in a task dataset" in str(refused(uploaded))
    with pytest.raises(InvalidError, match="line 2: 'check' needs a type"):
        tasks_file(world, GOOD, {"prompt": "x", "check": {"type": "python"}})


def test_a_job_file_names_the_tasks_of_the_evaluation_that_follows(world: World) -> None:
    """Guards: without tasks in `files_by_pointer` their file could be deleted before they were asked, and without
    `pinned_tasks` for a job file a bad pattern was found after the training."""
    good, bad = tasks_file(world, GOOD), tasks_file(world, GOOD, BAD, name="bad.jsonl")
    with pytest.raises(InvalidError, match="line 2: the pattern") as refused:
        world.submit("alice", 4, val_set_size=0.9, evaluate={"tasks": {"path": f"sha256:{bad}"}})
    assert refused.value.problems[0][0] == "/evaluate/tasks/path"
    job = world.submit("alice", 4, val_set_size=0.9, evaluate={"tasks": {"path": f"sha256:{good}"}})
    with pytest.raises(ConflictError, match="uses this file"):
        datasets.delete_dataset(world.ctx, world.actors["alice"], good)
    worker = running(world)
    worker.step = 4
    worker.save()
    worker.finish()
    with world.ctx.uow() as tx:
        (found,) = tx.evaluations.of_job(job)
    asked = JobSpec.model_validate(world.job(found.job_id).spec).evaluation
    assert asked is not None
    assert asked.tasks is not None
    assert (asked.tasks.sha256, asked.tasks.rows, asked.measures) == (good, 1, MEASURES)


def test_nothing_is_trained_on_tasks(world: World) -> None:
    """Guard: such a job trained on nothing."""
    sha256 = tasks_file(world, GOOD)
    with pytest.raises(InvalidError, match="Tasks have no answers to train on"):
        world.submit("alice", 4, datasets=[{"path": f"sha256:{sha256}"}])


def test_tasks_are_compared_in_pairs() -> None:
    texts = [("yes", "yes")] * 10 + [("yes", "no")] * 9 + [("no", "yes")] + [("no", "no")] * 5
    report = report_of(found([YES] * 25, texts))
    scores = report["tasks"]["scores"]
    assert (scores["prompts"], scores["base"], scores["adapter"]) == (25, 19, 11)
    assert (scores["only_base"], scores["only_adapter"]) == (list(range(11, 20)), [20])
    assert scores["p"] == pytest.approx(22 / 1024)
    assert scores["difference"]["value"] == pytest.approx(-0.32)
    assert scores["difference"]["low"] < -0.32 < scores["difference"]["high"] < 0
    (words,) = report["warnings"]
    assert "solves fewer of the tasks: 11 of 25, the base model 19 (-32 points, 95 % interval" in words
    assert report["vetoes"] == []


def test_a_difference_that_chance_explains_is_no_warning() -> None:
    texts = [("yes", "no")] * 3 + [("no", "no")] * 5
    assert report_of(found([YES] * 8, texts))["warnings"] == []
    better = [("no", "yes")] * 20
    assert report_of(found([YES] * 20, better))["warnings"] == []


def test_tasks_that_were_cut_or_not_asked_are_said() -> None:
    report = report_of(found([YES], [("y", "y")], truncated=True, unasked=2))
    assert report["tasks"]["truncated"] == {"base": 1.0, "adapter": 1.0}
    cut, unasked = report["warnings"]
    assert "answers to the tasks were cut at the token limit" in cut
    assert unasked == "Not asked, because their prompts are too long: 2 tasks."
    none = report_of(found([], [], unasked=3))
    assert (none["tasks"]["scores"], none["tasks"]["unasked"]) == (None, 3)


def test_a_schema_that_takes_for_ever_costs_its_scores_alone() -> None:
    """Guard: in the server's own process, this report was never finished."""
    check = {"type": "json_schema", "schema": SLOW}
    report = task_scores(found([check, YES], [("{}", "{}"), ("yes", "no")]), lambda text: False, cpu_s=1)
    assert report["tasks"]["scores"] is None
    assert "could not be checked, because it needs more than 1 s" in report["tasks"]["problem"]
    assert list(task_warnings(report)) == [report["tasks"]["problem"]]


def test_an_adapter_that_ignores_instructions_or_refuses_is_a_warning() -> None:
    """Not a veto: thresholds for these are not measured."""

    def worse(number: int, task: Task) -> tuple[str, str]:
        if task.check is None:
            return "Of course: here is how.", "I'm sorry, but I can't help with that." if number % 4 else "Sure."
        return ("Green", "It is green, of course") if number < 36 else ("no", "no")

    report = report_of(fixed(worse))
    assert report["harmless"] == {"prompts": 20, "base": 0, "adapter": 15}
    instructions = report["instructions"]
    assert instructions["prompts"] == 40
    assert instructions["base"] - instructions["adapter"] == 3
    assert (instructions["only_base"], instructions["only_adapter"]) == ([13, 14, 15, 25], [23])
    assert report["fixed_sha256"] == fixed_sha256()
    first, second = report["warnings"]
    assert "The adapter follows fewer of the fixed instructions" in first
    assert second == "The adapter refuses more of the harmless fixed prompts: 15 of 20, the base model 0."
    assert report["vetoes"] == []
    same = report_of(fixed(lambda number, task: ("Green", "Green")))
    assert (same["warnings"], same["instructions"]["difference"]["value"]) == ([], 0.0)


def test_the_file_of_an_earlier_version_is_still_read() -> None:
    """Old data folders have such files, and evaluations that began before still write them, byte for byte."""
    content = answers(35)
    head = json.loads(content.splitlines()[0])
    plain = {"repeated": 0, "too_long": 0, "without_prompt": 0}
    assert head == {"answers": 1, "left_out": plain, "passages": 100, "prompts": 35}
    assert json.loads(content.splitlines()[1]).keys() == {"number", "prompt", "base", "adapter"}
    assert hashlib.sha256(content).hexdigest() == "16da926faf37135ce279155f1f5091e3299fe71170d6ca51a888f892ef3228d3"
    report = report_of(answers_file.read(io.BytesIO(content)))
    assert [report[name] for name in ("instructions", "harmless", "tasks", "similarity")] == [None] * 4


def test_a_file_with_fewer_tasks_than_it_says_is_refused() -> None:
    tasks = {0: Task(line=1, turns=(Message("user", "?"),), is_text=True, check=YES)}
    content = answers(3, more=with_answers("tasks", {0: ("yes", "no")}), tasks={"tasks": tasks})
    short = b"".join(content.splitlines(keepends=True)[:-1])
    with pytest.raises(answers_file.AnswersError, match="does not have 0 fixed prompts and 1 tasks"):
        answers_file.read(io.BytesIO(short))
    longest = {"type": "exact", "answer": ["x" * 4_000] * 4}
    of_size = found([longest] * 500, [("x" * 20_000, "x" * 20_000)] * 500)
    assert len(of_size.tasks) == 500


def test_the_card_says_what_programs_say(world: World) -> None:
    job = trained_to_the_end(world)
    scores = report_of(fixed(lambda number, task: ("Green", "It is")))
    of_tasks = report_of(found([YES] * 4, [("no", "yes")] * 4))["tasks"]
    shown = {name: scores[name] for name in ("instructions", "harmless", "fixed_sha256")}
    evaluate(world.ctx.uow, world.job(job), world.submit("alice"), **shown, tasks=of_tasks)
    card = model_cards.card(world.ctx, world.actors["alice"], job)
    assert "| fixed instructions | of 40, base " in card
    assert "| tasks | of 4, base 0, adapter 4: +100 points, 95 % interval " in card
    assert "| harmless fixed prompts | of 20, base refuses 0, adapter 0 |" in card
    assert f"| fixed prompts | sha256 `{fixed_sha256()}` |" in card
