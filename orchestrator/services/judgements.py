"""Judgements for the owner of an evaluation: start, pause, resume, and what they say."""

from __future__ import annotations

from orchestrator.domain.accounts import Actor
from orchestrator.domain.choices import MAX_BUDGET
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.judgements import MAX_JUDGEMENTS, JudgeEndpoint, Judgement, JudgementState
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import require_owner
from orchestrator.services.comparisons import evaluation_of, read_answers
from orchestrator.services.context import Context, new_id
from orchestrator.services.judge_endpoints import own_endpoint
from orchestrator.services.judging import lock, note
from worker.shared import judge_prompt

BUDGET = 1_000_000
"""Tokens of a judgement unless its owner says otherwise."""


def start(ctx: Context, actor: Actor, job_id: str, endpoint: str, max_tokens: int = BUDGET) -> Judgement:
    """Start the judgement of a finished evaluation by one of the actor's endpoints, given by name or id.

    Raises `ForbiddenError` for an evaluation of another member, whose answers the actor may not send anywhere, and
    `ConflictError` without consent for the endpoint, or while another judgement of the evaluation runs.
    """
    _refuse_budget(max_tokens)
    with ctx.uow() as tx:
        found = _finished(tx, actor, job_id)
        chosen = _agreed(own_endpoint(tx, actor, endpoint))
    prompts, identical = read_answers(ctx, job_id)
    if prompts == len(identical):
        raise InvalidError("Both answers to every prompt are identical, so there is nothing to judge.")
    now = ctx.clock.now()
    judgement = Judgement(
        id=new_id("judgement", now),
        job_id=found.job_id,
        member_id=actor.member_id,
        endpoint_id=chosen.id,
        url=chosen.url,
        model=chosen.model,
        prompt_version=judge_prompt.VERSION,
        prompts=prompts,
        identical=identical,
        max_tokens=max_tokens,
        created_at=now,
    )
    with ctx.uow() as tx:
        _finished(tx, actor, job_id)
        _agreed(own_endpoint(tx, actor, chosen.id))
        tx.jobs.get(job_id)  # locked before a judgement, as in `lock`
        if len(tx.judgements.of_evaluation(job_id)) >= MAX_JUDGEMENTS:
            raise ConflictError(f"An evaluation has at most {MAX_JUDGEMENTS} judgements.")
        if not tx.judgements.add(judgement):
            raise ConflictError(_ANOTHER)
        note(tx, judgement, "evaluation.judging", actor.name, now, reason=f"by {chosen.model} at {chosen.url}")
    return judgement


_ANOTHER = "Another judgement of this evaluation is running. Pause it first, or wait until it ends."


def _refuse_budget(max_tokens: int) -> None:
    if not 1 <= max_tokens <= MAX_BUDGET:
        words = f"must be from 1 to {MAX_BUDGET}"
        raise InvalidError(f"The budget {words} tokens.", [("/max_tokens", words)])


def _finished(tx: Transaction, actor: Actor, job_id: str) -> Evaluation:
    found = evaluation_of(tx, actor, job_id)
    if found.owner != actor.member_id:
        raise ForbiddenError("Only its owner can send the answers of an evaluation to a judge model.")
    if found.finished_at is None:
        raise ConflictError("This evaluation has no answers yet. Wait until its job is done.")
    return found


def _agreed(endpoint: JudgeEndpoint) -> JudgeEndpoint:
    if endpoint.consented_at is None:
        raise ConflictError(
            f"You have not agreed that prompts and answers are sent to {endpoint.url}. "
            f"Do it with `trainhop judge consent {endpoint.name}`."
        )
    return endpoint


def pause(ctx: Context, actor: Actor, judgement_id: str) -> Judgement:
    """Send nothing more. Requests under way are stored. Pausing again is fine."""
    with ctx.uow() as tx:
        judgement = _own(tx, actor, judgement_id)
        if judgement.state is JudgementState.DONE:
            raise ConflictError("This judgement is done.")
        if judgement.state is JudgementState.RUNNING:
            judgement.state, judgement.reason = JudgementState.PAUSED, f"Paused by {actor.name}."
            tx.judgements.save(judgement)
    return judgement


def resume(ctx: Context, actor: Actor, judgement_id: str, max_tokens: int | None = None) -> Judgement:
    """Go on where the judgement stopped, with another budget if `max_tokens` is given. Stored verdicts are kept."""
    if max_tokens is not None:
        _refuse_budget(max_tokens)
    with ctx.uow() as tx:
        judgement = _own(tx, actor, judgement_id)
        if judgement.member_id != actor.member_id:
            raise ForbiddenError("Only its owner can send the answers of an evaluation to a judge model.")
        if judgement.state is JudgementState.DONE:
            raise ConflictError("This judgement is done.")
        endpoint = tx.judge_endpoints.get(judgement.endpoint_id)
        if endpoint is None:
            raise ConflictError("Its judge endpoint was removed. Start another judgement.")
        _agreed(endpoint)
        judgement.max_tokens = max_tokens or judgement.max_tokens
        if judgement.max_tokens <= judgement.used_tokens:
            words = f"{judgement.used_tokens} tokens are used already. Give a higher budget."
            raise InvalidError(words, [("/max_tokens", words)])
        others = (each for each in tx.judgements.of_evaluation(judgement.job_id) if each.id != judgement.id)
        if any(each.state is JudgementState.RUNNING for each in others):
            raise ConflictError(_ANOTHER)
        judgement.state, judgement.reason = JudgementState.RUNNING, ""
        judgement.fruitless, judgement.not_before = 0, 0.0
        tx.judgements.save(judgement)
    return judgement


def _own(tx: Transaction, actor: Actor, judgement_id: str) -> Judgement:
    """The judgement, locked, if the actor owns its evaluation. Raises `NotFoundError` or `ForbiddenError`."""
    judgement = lock(tx, judgement_id)
    evaluation = tx.evaluations.get(judgement.job_id) if judgement is not None else None
    if judgement is None or evaluation is None or not actor.may_see_jobs_of(evaluation.owner):
        raise NotFoundError(f"There is no judgement {judgement_id}.")
    require_owner(tx, actor, evaluation.owner, f"Judgement {judgement_id}")
    return judgement
