"""Blind comparisons for the owner of an evaluation: start, look, close, and the evidence for a verdict.

Until a comparison is closed, nobody learns which model wins, also not its owner. Nothing of it is logged.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Final

from orchestrator.domain.accounts import Actor
from orchestrator.domain.blind_votes import (
    MARGIN_PROMPTS,
    PLANS,
    Agreement,
    Count,
    Result,
    agreement,
    count,
    margin_test,
    planned_prompts,
    ratings_to_come,
    result,
    tested,
)
from orchestrator.domain.choices import GainKind
from orchestrator.domain.comparisons import BlindComparison, Ending, PlanName, Rater
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.trust.sign_test import Comparison, Outcome, Quality
from orchestrator.domain.trust.win_rates import MarginResult
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import require_owner
from orchestrator.services.context import Context, new_id
from orchestrator.services.declared_gains import scores_of
from worker.shared.judge_prompt import are_identical

QUESTION: Final = "Which answer is better?"
MAX_QUESTION = 500


@dataclass(frozen=True, kw_only=True)
class RaterStatus:
    """A rater with the number of prompts that they rated."""

    id: str
    name: str
    ratings: int
    created_at: float
    opened_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """A comparison so far. It has a result only after it was closed.

    `decisive` and `ties` are decided prompts, `waiting` have one vote and need a second rater, `more` is about the
    number of ratings that are still needed.
    """

    comparison: BlindComparison
    decisive: int
    ties: int
    waiting: int
    ratings: int
    more: int
    agreement: Agreement
    raters: tuple[RaterStatus, ...]
    result: Result | None


def start(
    ctx: Context,
    actor: Actor,
    job_id: str,
    *,
    question: str = QUESTION,
    plan: PlanName = PlanName.STANDARD,
    margin: float | None = None,
    gain: GainKind | None = None,
) -> BlindComparison:
    """Start the comparison of a finished evaluation's answers.

    Raises `ConflictError` while another one is open, and after one has decided: repeating it until the result pleases
    would make the result worthless. Raises `InvalidError` if there are too few prompts with different answers, or if
    the `gain` could not be shown.
    """
    with ctx.uow() as tx:
        evaluation = evaluation_of(tx, actor, job_id)
        if evaluation.finished_at is None:
            raise ConflictError("This evaluation has no answers yet. Wait until its job is done.")
        _refuse_after_decision(tx, job_id)
    _require_gain(evaluation, gain, margin)
    prompts, identical = read_answers(ctx, job_id)
    _require_prompts(prompts, len(identical), plan, margin)
    now = ctx.clock.now()
    comparison = BlindComparison(
        id=new_id("comparison", now),
        job_id=job_id,
        member_id=actor.member_id,
        question=question or QUESTION,
        plan=plan,
        margin=margin,
        margin_prompts=planned_prompts(margin, prompts),
        key=secrets.token_hex(32),
        prompts=prompts,
        identical=identical,
        created_at=now,
        gain=gain,
    )
    with ctx.uow() as tx:
        evaluation_of(tx, actor, job_id)
        _refuse_after_decision(tx, job_id)
        if not tx.comparisons.add(comparison):
            raise ConflictError("This evaluation has an open comparison. Close it before you start another one.")
    return comparison


def _refuse_after_decision(tx: Transaction, job_id: str) -> None:
    if any(found.ending is Ending.DECIDED for found in tx.comparisons.of_evaluation(job_id)):
        raise ConflictError(
            "A comparison of this evaluation has decided already. To compare again, evaluate the job again with other "
            "prompts."
        )


def read_answers(ctx: Context, job_id: str) -> tuple[int, list[int]]:
    """The number of prompts, and those whose answers look identical. One prompt is in memory at a time."""
    identical: list[int] = []
    with ctx.uow() as tx:
        numbers = sorted(tx.evaluations.lengths(job_id))
        for number in numbers:
            found = tx.evaluations.answer(job_id, number)
            if found is not None and are_identical(found.base, found.adapter):
                identical.append(number)
    return len(numbers), identical


def _require_prompts(prompts: int, identical: int, plan: PlanName, margin: float | None) -> None:
    different, least = prompts - identical, PLANS[plan].looks[0]
    if not prompts:
        raise InvalidError("This evaluation has no answers, so there is nothing to compare.")
    if not different:
        raise InvalidError("Both answers to every prompt are identical, so there is nothing to compare.")
    if different < least:
        raise InvalidError(
            f"Only {different} of {prompts} prompts have two different answers, and the {plan} plan needs at least "
            f"{least}. Evaluate more prompts."
        )
    if margin is not None and prompts < MARGIN_PROMPTS:
        raise InvalidError(f"A margin needs at least {MARGIN_PROMPTS} prompts, and this evaluation has {prompts}.")


def _require_gain(evaluation: Evaluation, gain: GainKind | None, margin: float | None) -> None:
    if gain is None:
        return
    if margin is None:
        raise InvalidError("A gain elsewhere counts only for an adapter that is not worse by a margin. Give a margin.")
    if scores_of(evaluation) is None:
        raise InvalidError(
            "No tasks were scored in this evaluation, so there is no gain on them. Evaluate the job with tasks."
        )


def change(
    ctx: Context,
    actor: Actor,
    comparison_id: str,
    *,
    question: str | None = None,
    plan: PlanName | None = None,
    margin: float | None = None,
    gain: GainKind | None = None,
) -> BlindComparison:
    """Change settings of a comparison before its first vote. None leaves a setting as it is."""
    with ctx.uow() as tx:
        comparison = comparison_of(tx, actor, comparison_id, lock=True)
        _require_open(comparison)
        if tx.comparisons.votes(comparison_id):
            raise ConflictError(
                "The settings are fixed since the first vote. To change them, close this comparison and start another."
            )
        comparison.question = question or comparison.question
        comparison.plan = plan or comparison.plan
        comparison.margin = comparison.margin if margin is None else margin
        comparison.gain = gain or comparison.gain
        _require_gain(evaluation_of(tx, actor, comparison.job_id), comparison.gain, comparison.margin)
        comparison.margin_prompts = planned_prompts(comparison.margin, comparison.prompts)
        _require_prompts(comparison.prompts, len(comparison.identical), comparison.plan, comparison.margin)
        tx.comparisons.save(comparison)
    return comparison


def close(ctx: Context, actor: Actor, comparison_id: str) -> BlindComparison:
    """Close a comparison before the test decides: its result is then "not enough evidence". Closing again is fine."""
    with ctx.uow() as tx:
        comparison = comparison_of(tx, actor, comparison_id, lock=True)
        if comparison.closed_at is None:
            end(tx, comparison, Ending.BY_OWNER, ctx.clock.now())
    return comparison


def end(tx: Transaction, comparison: BlindComparison, why: Ending, now: float) -> None:
    """Close a comparison that is locked."""
    comparison.closed_at, comparison.ending = now, why
    tx.comparisons.save(comparison)


def status(ctx: Context, actor: Actor, comparison_id: str) -> Status:
    """What is known of a comparison so far."""
    with ctx.uow() as tx:
        comparison = comparison_of(tx, actor, comparison_id)
        votes, raters = tx.comparisons.votes(comparison_id), tx.comparisons.raters(comparison_id)
        counted = count(comparison, votes)
        found = None if comparison.closed_at is None else _result(tx, comparison, counted)
    ties = sum(outcome is Outcome.TIE for outcome in counted.decided.values())
    return Status(
        comparison=comparison,
        decisive=len(counted.decided) - ties,
        ties=ties,
        waiting=len(counted.given) - len(counted.decided),
        ratings=len(votes),
        more=0 if found is not None else ratings_to_come(comparison, counted),
        agreement=agreement(counted),
        raters=tuple(_shown(rater, sum(vote.rater_id == rater.id for vote in votes)) for rater in raters),
        result=found,
    )


def _result(tx: Transaction, comparison: BlindComparison, counted: Count) -> Result:
    return result(comparison, counted, tx.evaluations.lengths(comparison.job_id))


def _shown(rater: Rater, ratings: int) -> RaterStatus:
    return RaterStatus(
        id=rater.id,
        name=rater.name,
        ratings=ratings,
        created_at=rater.created_at,
        opened_at=rater.opened_at,
        revoked_at=rater.revoked_at,
    )


def of_evaluation(ctx: Context, actor: Actor, job_id: str) -> list[BlindComparison]:
    """The comparisons of an evaluation, newest first."""
    with ctx.uow() as tx:
        evaluation_of(tx, actor, job_id)
        return tx.comparisons.of_evaluation(job_id)


@dataclass(frozen=True, kw_only=True)
class VoteEvidence:
    """What a closed comparison says for a verdict. `margin` and `gain` are None if none was declared.

    `alpha` is the agreement of raters, or None if it is not known.
    """

    votes: Comparison
    margin: MarginResult | None
    gain: GainKind | None
    alpha: float | None


def evidence_of(tx: Transaction, evaluation_job_id: str) -> VoteEvidence | None:
    """The evidence of an evaluation's newest closed comparison, or None without one.

    More ratings are forecast only for one that its owner has closed. The others had all that they could get.
    """
    closed = [found for found in tx.comparisons.of_evaluation(evaluation_job_id) if found.closed_at is not None]
    if not closed:
        return None
    counted = count(closed[0], tx.comparisons.votes(closed[0].id))
    votes = tested(closed[0], counted)
    if votes.quality is Quality.OPEN and closed[0].ending is not Ending.BY_OWNER:
        votes = replace(votes, more=None)
    return VoteEvidence(
        votes=votes,
        margin=margin_test(closed[0], counted),
        gain=closed[0].gain,
        alpha=agreement(counted).alpha,
    )


def evaluation_of(tx: Transaction, actor: Actor, job_id: str) -> Evaluation:
    """The evaluation of the actor's own job. Raises `NotFoundError`, or `ForbiddenError` if it is a colleague's."""
    found = tx.evaluations.get(job_id)
    if found is None or not actor.may_see_jobs_of(found.owner):
        raise NotFoundError(f"There is no evaluation {job_id}.")
    require_owner(tx, actor, found.owner, f"Evaluation {job_id}")
    return found


def comparison_of(tx: Transaction, actor: Actor, comparison_id: str, *, lock: bool = False) -> BlindComparison:
    """The comparison of the actor's own evaluation. Raises as `evaluation_of`."""
    found = tx.comparisons.get_for_update(comparison_id) if lock else tx.comparisons.get(comparison_id)
    evaluation = tx.evaluations.get(found.job_id) if found is not None else None
    if found is None or evaluation is None or not actor.may_see_jobs_of(evaluation.owner):
        raise NotFoundError(f"There is no comparison {comparison_id}.")
    require_owner(tx, actor, evaluation.owner, f"Comparison {comparison_id}")
    return found


def _require_open(comparison: BlindComparison) -> None:
    if comparison.closed_at is not None:
        raise ConflictError("This comparison is closed. Start another one.")
