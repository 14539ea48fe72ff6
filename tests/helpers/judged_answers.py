"""Files of answers with what a judge model says of them."""

from __future__ import annotations

from collections.abc import Callable

from tests.services.test_evaluations import answers
from worker.shared.answers_file import json_line
from worker.shared.evaluation_units import Arm, Measure

SHA256 = "5" * 64
Says = Callable[[int, Arm], str | None]
"""What a judge says of the pair with this number if this arm's answer is first. None: the request was too long."""


def always(word: str) -> Says:
    return lambda number, first: word


def prefers(arm: Arm) -> Says:
    return lambda number, first: "first" if first is arm else "second"


def judged_answers(prompts: int, says: Says) -> bytes:
    """Answers that differ, and a judge's word on each pair in both orders."""
    said = [
        {"measure": Measure.JUDGE, "arm": first, "number": number, "text": text, "tokens": 100}
        for number in range(prompts)
        for first in Arm
        if (text := says(number, first)) is not None
    ]
    return answers(prompts, more=b"".join(map(json_line, said)), tasks={"judge_sha256": SHA256})
