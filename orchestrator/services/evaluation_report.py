"""The report of an evaluation, from the answers and losses that its worker has measured.

A veto says that the adapter harms what the base model could do. A warning is what a person should look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import fmean
from typing import Any

from orchestrator.domain.trust.verdict import MAX_TRUNCATED, Forgetting, Harm, forgetting
from orchestrator.services.benchmark_scores import benchmark_scores, benchmark_warnings
from orchestrator.services.similarity import similarity
from orchestrator.services.task_scores import DRIFT, task_scores, task_warnings
from worker.shared.answers_file import AnswersFile, ArmAnswer
from worker.shared.counted_words import many
from worker.shared.data_checks.phrases import Refusals, own_phrases
from worker.shared.data_checks.template_tokens import has_template_text
from worker.shared.evaluation_spec import LEAST_PROMPTS
from worker.shared.evaluation_units import Arm

RATIO = 2.0
"""Ratio of the mean lengths, either way, above which there is a warning."""
RUN, LEAST_WORDS, CHARACTERS, LEAST_CHARACTERS = 4, 16, 8, 64
"""Words or characters that are compared to find repetition, and those that an answer must have at least."""
_Shares = dict[str, float]


def report_of(found: AnswersFile) -> dict[str, Any]:
    """The report as plain data."""
    losses = [(loss.base, loss.adapter) for loss in found.losses]
    harm = forgetting([base for base, _ in losses], [adapter for _, adapter in losses])
    report: dict[str, Any] = {
        "prompts": len(found.answered),
        "truncated": _shares(found, lambda answer: answer.truncated),
        "tokens": {str(arm): fmean(answer.tokens for answer in _answers(found, arm)) for arm in Arm},
        "identical": sum(each.base.text == each.adapter.text for each in found.answered),
        "forgetting": {
            "passages": len(losses),
            "rise": {"value": harm.rise.value, "low": harm.rise.low, "high": harm.rise.high},
            "harm": str(harm.harm),
        },
        "refusals": _shares(found, lambda answer: _refusals().is_refusal(answer.text)),
        "repetition": _shares(found, lambda answer: repeats(answer.text)),
        "template_leaks": _shares(found, lambda answer: answer.leaked or has_template_text(answer.text)),
    }
    report |= task_scores(found, _refusals().is_refusal)
    if found.head.benchmarks:
        report |= {"benchmarks": benchmark_scores(found)}
    report |= {"vetoes": list(_vetoes(harm)), "warnings": list(_warnings(found, report, harm))}
    # After vetoes and warnings, which must not depend on it.
    return report | {"similarity": similarity(found.answered)}


def _answers(found: AnswersFile, arm: Arm) -> list[ArmAnswer]:
    return [each.base if arm is Arm.BASE else each.adapter for each in found.answered]


def _shares(found: AnswersFile, holds: Callable[[ArmAnswer], bool]) -> _Shares:
    return {str(arm): fmean(map(holds, _answers(found, arm))) for arm in Arm}


@cache
def _refusals() -> Refusals:
    return Refusals(own_phrases())


def repeats(text: str) -> bool:
    """Whether more than half of the runs of words in a text, or of characters if it has few words, are repeated."""
    words = text.split()
    if len(words) >= LEAST_WORDS:
        return _is_repeated(words, RUN)
    return len(text) >= LEAST_CHARACTERS and _is_repeated(text, CHARACTERS)


def _is_repeated(parts: Sequence[str], run: int) -> bool:
    runs = [tuple(parts[place : place + run]) for place in range(len(parts) - run + 1)]
    return 2 * len(set(runs)) < len(runs)


def _vetoes(harm: Forgetting) -> Iterator[str]:
    if harm.harm is Harm.VETO:
        yield f"The adapter has forgotten general text: its loss is {harm.rise.value:.2f} nats per token higher."


def _warnings(found: AnswersFile, report: dict[str, Any], harm: Forgetting) -> Iterator[str]:
    prompts = report["prompts"]
    if prompts < LEAST_PROMPTS:
        few = f"{many(prompts, 'prompt')} {'is' if prompts == 1 else 'are'} too few for a verdict."
        yield f"{few} At least {LEAST_PROMPTS} are needed, 100 are better."
    if left_out := found.head.left_out.total:
        yield (
            f"{many(left_out, 'row')} gave no prompt: {found.head.left_out.too_long} are too long, "
            f"{found.head.left_out.repeated} repeat an earlier prompt, {found.head.left_out.without_prompt} have no "
            "turn before their answer."
        )
    if max(report["truncated"].values()) > MAX_TRUNCATED:
        yield (
            f"More than {MAX_TRUNCATED:.0%} of the answers were cut at the token limit, so there is no verdict. "
            "Evaluate with a higher max_new_tokens."
        )
    if harm.harm is Harm.WARNING:
        yield (
            "The adapter may have forgotten general text: its loss changed by "
            f"{harm.rise.value:+.2f} nats per token ({harm.rise.low:+.2f} to {harm.rise.high:+.2f})."
        )
    if report["identical"] == prompts:
        yield "The adapter answers every prompt exactly as the base model does."
    yield from _drifts(report)
    yield from task_warnings(report)
    yield from benchmark_warnings(report.get("benchmarks") or [])
    low, high = sorted(report["tokens"].values())
    if high > RATIO * max(low, 1.0):
        longer = max(report["tokens"], key=report["tokens"].get)
        name = "the adapter" if longer == Arm.ADAPTER else "the base model"
        yield f"Answers of {name} are more than {RATIO:g} times as long. Raters tend to prefer longer answers."


_DRIFTS = {
    "refusals": "The adapter refuses more often than the base model",
    "repetition": "The adapter repeats itself more often than the base model",
    "template_leaks": "The adapter writes more control tokens or role names than the base model",
}


def _drifts(report: dict[str, Any]) -> Iterator[str]:
    for name, words in _DRIFTS.items():
        shares: _Shares = report[name]
        if shares[Arm.ADAPTER] - shares[Arm.BASE] > DRIFT:
            yield f"{words}: {shares[Arm.ADAPTER]:.0%} of its answers, {shares[Arm.BASE]:.0%} of the base model's."
