"""Lines of the answers file, made of what the units of an evaluation gave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from worker.shared.evaluation_units import Arm, Measure
from worker.shared.judge_prompt import are_identical
from worker.shared.tasks import Task

if TYPE_CHECKING:
    from worker.shared.answers_file import AskedBenchmark

Results = dict[tuple[str, int], dict[str, Any]]
"""What each arm gave, by arm and number."""
Lines = list[dict[str, Any]]


def by_measure(results: bytes) -> dict[Measure, Results]:
    """What each arm gave, by what was measured, arm and number."""
    found: dict[Measure, Results] = {measure: {} for measure in Measure}
    for line in results.splitlines():
        one = json.loads(line)
        measure = Measure(one.pop("measure", Measure.PASSAGES if "loss" in one else Measure.PROMPTS))
        found[measure][one.pop("arm"), one.pop("number")] = one
    return found


def of_tasks(tasks: Mapping[int, Task], found: Results) -> Lines:
    """A line for each task that was asked."""
    return [
        {"line": task.line, "check": task.check, **{str(arm): found[arm, number] for arm in Arm}}
        for number, task in tasks.items()
    ]


def of_items(benchmark: AskedBenchmark, found: Results) -> Lines:
    """A line for each item of a benchmark that was asked."""
    return [
        {
            "benchmark": benchmark.name,
            "item": number,
            **{str(arm): _item_answer(found[arm, benchmark.first + number]) for arm in Arm},
        }
        for number in benchmark.asked
    ]


def _item_answer(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"correct": line["correct"], "answer": line["answer"]}


def own_loss(found: Results, number: int) -> dict[str, Any] | None:
    """The losses on the own answer of a row. None unless both arms have one."""
    lines = [(str(arm), found[arm, number]) for arm in Arm if (arm, number) in found]
    if len(lines) < len(Arm) or any(line["loss"] is None for _, line in lines):
        return None
    return {"tokens": lines[0][1]["tokens"], **{arm: line["loss"] for arm, line in lines}}


def different(answers: Results) -> list[int]:
    """The numbers of the prompts with two different answers, which a judge model compares."""
    numbers = sorted(number for arm, number in answers if arm == Arm.BASE)
    texts = {number: [answers[arm, number]["text"] for arm in Arm] for number in numbers}
    return [number for number in numbers if not are_identical(*texts[number])]


def of_pairs(numbers: Sequence[int], found: Results) -> Lines:
    """A line for each pair of answers. A request that was too long for the judge has None."""
    return [{"pair": number, **{f"{arm}_first": found.get((arm, number)) for arm in Arm}} for number in numbers]
