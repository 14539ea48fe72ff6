"""What judge models say of an evaluation: their conduct, their agreement with people, and their advice.

While people compare the same answers, nothing here says which model a judge prefers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.audits import percent
from orchestrator.domain.blind_votes import count
from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.judge_models import shared_family
from orchestrator.domain.judgements import JudgeAnswer, Judgement, JudgementState
from orchestrator.domain.trust.judge import (
    MAX_INCONSISTENT,
    Advice,
    Conduct,
    Judged,
    PeopleAgreement,
    advise,
    agreement,
    conduct,
)
from orchestrator.domain.trust.sign_test import Comparison, Outcome
from orchestrator.ports.repository import Transaction
from orchestrator.services.comparisons import evaluation_of
from orchestrator.services.context import Context
from worker.shared.counted_words import many


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """A judgement so far. `answered` counts its requests with a stored answer, `failures` those without a verdict.

    The last four are None while people compare the same answers (`is_hidden`). `people` is also None without a closed
    comparison. `family` is a model family that the judge shares with the base model (empty: none).
    """

    judgement: Judgement
    answered: int
    failures: dict[str, int]
    estimated: int
    conduct: Conduct
    is_hidden: bool
    people: PeopleAgreement | None
    advice: Advice | None
    result: Comparison | None
    family: str | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before they believe the judge."""
        return tuple(_warnings(self))

    @property
    def conduct_in_words(self) -> str:
        """Pairs, failures, inconsistency and bias."""
        found = self.conduct
        words = f"{many(found.pairs, 'pair')} in both orders, {found.failed} failed"
        if not found.pairs:
            return words
        share = found.inconsistent
        words += f"; inconsistent in {percent(share.value)} % ({percent(share.low)}–{percent(share.high)} %)"
        return f"{words}; first place {found.first}, second {found.second} times (p {found.bias_p:.2f})"

    @property
    def people_in_words(self) -> str:
        """Agreement with people. Empty if it is not known."""
        if self.people is None or not self.people.shared:
            return ""
        kappa = f", kappa {self.people.kappa:.2f}" if self.people.kappa is not None else ""
        return f"{percent(self.people.equal.value)} % of {many(self.people.shared, 'prompt')}{kappa}"


def _warnings(report: JudgeReport) -> list[str]:
    found, share = report.conduct, report.conduct.inconsistent
    words: list[str] = []
    if found.pairs and not found.is_usable:
        words.append(
            f"The judge contradicts itself in {percent(share.value)} % of the pairs. Above {MAX_INCONSISTENT:.0%} it "
            "is unusable."
        )
    if found.pairs and found.is_biased:
        place = "first" if found.first > found.second else "second"
        words.append(f"The judge prefers the answer in the {place} place.")
    if found.failed:
        counts = "It counts" if found.failed == 1 else "They count"
        words.append(f"The judge gave no verdict on {many(found.failed, 'pair')}. {counts} for nothing.")
    if report.family:
        words.append(f"Judge and base model are both of the family {report.family}. Judges prefer their own family.")
    return words


def reports(ctx: Context, actor: Actor, job_id: str) -> list[JudgeReport]:
    """The judgements of an evaluation, newest first."""
    with ctx.uow() as tx:
        evaluation_of(tx, actor, job_id)
        return of_evaluation(tx, job_id)


def report(ctx: Context, actor: Actor, judgement_id: str, job_id: str) -> JudgeReport:
    """One judgement of an evaluation that the actor may see. Raises `NotFoundError` if it was deleted."""
    for found in reports(ctx, actor, job_id):
        if found.judgement.id == judgement_id:
            return found
    raise NotFoundError(f"There is no judgement {judgement_id}.")


def of_evaluation(tx: Transaction, job_id: str) -> list[JudgeReport]:
    """The judgements of an evaluation, newest first."""
    return _reports(tx, job_id, tx.judgements.of_evaluation(job_id))


def _reports(tx: Transaction, job_id: str, judgements: Sequence[Judgement]) -> list[JudgeReport]:
    if not judgements:
        return []
    compared = tx.comparisons.of_evaluation(job_id)
    is_hidden = any(found.closed_at is None for found in compared)
    people: dict[int, Outcome] | None = None
    if compared and not is_hidden:
        people = count(compared[0], tx.comparisons.votes(compared[0].id)).decided
    job = tx.jobs.get_many([job_id]).get(job_id)
    base = str(job.spec.get("base_model", "")) if job is not None else ""
    return [_report(found, tx.judgements.answers(found.id), people, base, is_hidden=is_hidden) for found in judgements]


def _report(
    judgement: Judgement,
    answers: Sequence[JudgeAnswer],
    people: dict[int, Outcome] | None,
    base: str,
    *,
    is_hidden: bool,
) -> JudgeReport:
    pairs = _pairs(answers)
    agreed = _agreement(pairs, people) if people is not None else None
    advice, result = advise(list(pairs.values()), agreed)
    return JudgeReport(
        judgement=judgement,
        answered=len(answers),
        failures=dict(Counter(answer.failure for answer in answers if answer.failure)),
        estimated=sum(answer.is_estimated for answer in answers),
        conduct=conduct(pairs.values()),
        is_hidden=is_hidden,
        people=agreed,
        advice=None if is_hidden else advice,
        result=None if is_hidden else result,
        family=None if is_hidden else shared_family(judgement.model, base),
    )


def _pairs(answers: Sequence[JudgeAnswer]) -> dict[int, Judged]:
    """The prompts with an answer in both orders, by their number."""
    found = {(answer.number, answer.adapter_first): answer.verdict for answer in answers}
    both = [number for number, first in found if first and (number, False) in found]
    return {
        number: Judged(adapter_first=found[number, True], adapter_second=found[number, False])
        for number in sorted(both)
    }


def _agreement(pairs: dict[int, Judged], people: dict[int, Outcome]) -> PeopleAgreement:
    shared = [(pair.outcome, people[number]) for number, pair in pairs.items() if not pair.failed and number in people]
    return agreement(shared)


@dataclass(frozen=True, kw_only=True)
class JudgeEvidence:
    """What the finished judgements of an evaluation say together, newest first.

    One that advises against the adapter outweighs all others. `able` counts those that could have promoted it.
    """

    advice: Advice
    reports: tuple[JudgeReport, ...]
    able: int


def evidence_of(tx: Transaction, job_id: str) -> JudgeEvidence | None:
    """The evidence of an evaluation's finished judgements. None without one, or while people compare its answers."""
    judgements = tx.judgements.of_evaluation(job_id)
    done = _reports(tx, job_id, [found for found in judgements if found.state is JudgementState.DONE])
    given = {found.advice for found in done}
    if not done or None in given:
        return None
    ranked = (Advice.DO_NOT, Advice.PROMOTE, Advice.ASK_PEOPLE)
    return JudgeEvidence(
        advice=next(advice for advice in ranked if advice in given),
        reports=tuple(done),
        able=sum(found.people is not None and found.people.is_shown for found in done),
    )
