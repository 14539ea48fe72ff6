"""Judgements at work: requests to judge models within a budget of tokens, stored one by one, and never sent twice.

An answer is stored before the next request is sent for the same prompt and order, so a server that is killed loses the
requests that were under way, and nothing else. Their tokens count as used.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import islice

import structlog

from orchestrator.domain.accounts import Role
from orchestrator.domain.jobs import Event
from orchestrator.domain.judge_models import verdict_in
from orchestrator.domain.judgements import JudgeAnswer, JudgeEndpoint, Judgement, JudgementState
from orchestrator.ports.judges import JudgeAddress, NoReply, Remedy, Reply
from orchestrator.ports.repository import Transaction
from orchestrator.ports.system import VaultError
from orchestrator.services.context import Context
from orchestrator.services.judge_endpoints import JudgingContext
from worker.shared import judge_prompt

log = structlog.get_logger()

REQUESTS_AT_ONCE = 4
"""Requests of one judgement: two prompts in both orders."""
MAX_FRUITLESS = 5
"""Batches in a row without a verdict, after which a judgement is paused."""
RETRY_S = (5.0, 30.0, 120.0, 600.0)
LEAST_WAIT_S, MAX_WAIT_S = 1.0, 900.0
"""Bounds of what an endpoint may ask for with `Retry-After`."""
NO_VERDICT = "The judge answered without a verdict."


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One request. `most_tokens` is a high estimate of what it costs."""

    number: int
    adapter_first: bool
    messages: tuple[dict[str, str], ...]
    most_tokens: int


@dataclass(frozen=True, kw_only=True)
class _Batch:
    where: JudgeAddress
    questions: tuple[_Question, ...]


Outcome = Reply | NoReply


def judge_due(context: JudgingContext) -> None:
    """Work on the judgements that may send now, one of each member, in threads of their own. Does not wait for them."""
    now = context.ctx.clock.now()
    with context.ctx.uow() as tx:
        due = [found for found in tx.judgements.running() if found.not_before <= now]
    calls = {found.member_id: partial(_work_safely, context, found.id) for found in reversed(due)}
    context.running.judgements.gather(calls, patience_s=0.0, on_late=lambda: None)


def _work_safely(context: JudgingContext, judgement_id: str) -> None:
    try:
        work(context, judgement_id)
    except Exception:
        log.exception("a judgement failed; retrying in a later round", judgement=judgement_id)


def work(context: JudgingContext, judgement_id: str) -> None:
    """Send requests until the judgement ends, is paused, or has to wait."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="judge") as pool:
        while not context.running.stopping.is_set() and (batch := _next(context.ctx, judgement_id)) is not None:
            under_way = {pool.submit(_send, context, batch.where, one): one for one in batch.questions}
            outcomes: list[Outcome] = []
            for sent in as_completed(under_way):
                outcomes.append(sent.result())
                _keep(context.ctx, judgement_id, under_way[sent], outcomes[-1])
            _settle(context.ctx, judgement_id, outcomes)


def _send(context: JudgingContext, where: JudgeAddress, question: _Question) -> Outcome:
    try:
        return context.client.ask(where, question.messages, judge_prompt.MAX_OUTPUT_TOKENS)
    except NoReply as error:
        return error


def _next(ctx: Context, judgement_id: str) -> _Batch | None:
    """The next requests, with their tokens reserved. None if there is nothing to send now."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        judgement = tx.judgements.get_for_update(judgement_id)
        if judgement is None or judgement.state is not JudgementState.RUNNING or judgement.not_before > now:
            return None
        judgement.used_tokens += judgement.reserved_tokens  # of requests that were under way when a server ended
        judgement.reserved_tokens = 0
        batch = _batch(ctx, tx, judgement)
        tx.judgements.save(judgement)
    if batch is not None and not batch.questions:
        _finish(ctx, judgement_id)
        return None
    return batch


def _batch(ctx: Context, tx: Transaction, judgement: Judgement) -> _Batch | None:
    """Reserve the tokens of the next requests. Without questions if all are answered, None if the judgement stops."""
    endpoint = tx.judge_endpoints.get(judgement.endpoint_id)
    if endpoint is None:
        return _pause(judgement, "Its judge endpoint was removed.")
    if endpoint.consented_at is None:
        return _pause(judgement, "There is no consent that answers are sent to this endpoint.")
    try:
        where = _where(ctx, tx, endpoint)
    except VaultError as error:
        return _pause(judgement, f"The key of the endpoint cannot be read: {error}.")
    waiting = list(islice(_questions(tx, judgement), REQUESTS_AT_ONCE))
    if not waiting:
        return _Batch(where=where, questions=())
    left, chosen = judgement.max_tokens - judgement.used_tokens, list[_Question]()
    for question in waiting:
        if question.most_tokens > left:
            break
        left -= question.most_tokens
        chosen.append(question)
    if not chosen:
        judgement.state = JudgementState.BUDGET_SPENT
        judgement.reason = f"The next request may need {waiting[0].most_tokens} tokens, and {max(0, left)} are left."
        return None
    judgement.reserved_tokens = sum(question.most_tokens for question in chosen)
    return _Batch(where=where, questions=tuple(chosen))


def _pause(judgement: Judgement, reason: str) -> None:
    judgement.state, judgement.reason = JudgementState.PAUSED, reason


def _where(ctx: Context, tx: Transaction, endpoint: JudgeEndpoint) -> JudgeAddress:
    owner = tx.members.get(endpoint.member_id)
    return JudgeAddress(
        url=endpoint.url,
        model=endpoint.model,
        key=ctx.vault.open(endpoint.sealed) if endpoint.sealed else "",
        anywhere=owner is not None and owner.role is Role.ADMIN,
    )


def _questions(tx: Transaction, judgement: Judgement) -> Iterator[_Question]:
    """The requests without a stored answer, in the order of the prompts."""
    stored = {(answer.number, answer.adapter_first) for answer in tx.judgements.answers(judgement.id)}
    identical = set(judgement.identical)
    for number in sorted(tx.evaluations.lengths(judgement.job_id)):
        missing = [first for first in (True, False) if (number, first) not in stored]
        found = tx.evaluations.answer(judgement.job_id, number) if missing and number not in identical else None
        if found is None:
            continue
        for adapter_first in missing:
            texts = (found.adapter, found.base) if adapter_first else (found.base, found.adapter)
            sent = tuple(judge_prompt.messages(found.prompt, *texts))
            yield _Question(
                number=number,
                adapter_first=adapter_first,
                messages=sent,
                most_tokens=judge_prompt.most_tokens(sent),
            )


def _finish(ctx: Context, judgement_id: str) -> None:
    now = ctx.clock.now()
    with ctx.uow() as tx:
        judgement = lock(tx, judgement_id)
        if judgement is not None and judgement.state is JudgementState.RUNNING:
            judgement.state, judgement.reason, judgement.finished_at = JudgementState.DONE, "", now
            tx.judgements.save(judgement)
            note(tx, judgement, "evaluation.judged", "judge", now, reason=f"by {judgement.model}")


def lock(tx: Transaction, judgement_id: str) -> Judgement | None:
    """The judgement, locked after its evaluation's job, so that only one judgement of it changes its state."""
    found = tx.judgements.get(judgement_id)
    if found is None:
        return None
    tx.jobs.get(found.job_id)
    return tx.judgements.get_for_update(judgement_id)


def note(tx: Transaction, judgement: Judgement, kind: str, actor: str, now: float, *, reason: str) -> None:
    """Record an event of the evaluation's job. It says nothing about the result."""
    job = tx.jobs.get(judgement.job_id)
    assert job is not None, "an evaluation has a job"
    data = {"judgement": judgement.id, "model": judgement.model, "url": judgement.url}
    # `job.note` would also change the time of the job's end.
    job.events.append(Event(job_id=job.id, at=now, kind=kind, actor=actor, reason=reason, data=data))
    tx.jobs.save(job)


def _keep(ctx: Context, judgement_id: str, question: _Question, outcome: Outcome) -> None:
    """Store what came of one request, and count its tokens."""
    with ctx.uow() as tx:
        judgement = tx.judgements.get_for_update(judgement_id)
        if judgement is None:  # deleted in the meantime
            return
        answer = _answer(judgement_id, question, outcome, ctx.clock.now())
        cost = _cost(question, outcome)
        if answer is not None:
            tx.judgements.add_answer(answer)
        judgement.reserved_tokens = max(0, judgement.reserved_tokens - question.most_tokens)
        judgement.used_tokens += cost
        tx.judgements.save(judgement)


def _cost(question: _Question, outcome: Outcome) -> int:
    if isinstance(outcome, Reply):
        return question.most_tokens if outcome.tokens is None else outcome.tokens
    return question.most_tokens if outcome.may_cost else 0


def _answer(judgement_id: str, question: _Question, outcome: Outcome, now: float) -> JudgeAnswer | None:
    """The row to store. None if the same request may succeed later."""
    if isinstance(outcome, NoReply) and outcome.remedy is not Remedy.NOTHING:
        return None
    verdict = verdict_in(outcome.text) if isinstance(outcome, Reply) else None
    failure = str(outcome) if isinstance(outcome, NoReply) else "" if verdict is not None else NO_VERDICT
    return JudgeAnswer(
        judgement_id=judgement_id,
        number=question.number,
        adapter_first=question.adapter_first,
        verdict=verdict,
        failure=failure,
        tokens=_cost(question, outcome),
        is_estimated=not isinstance(outcome, Reply) or outcome.tokens is None,
        at=now,
    )


def _settle(ctx: Context, judgement_id: str, outcomes: list[Outcome]) -> None:
    """After a batch: pause the judgement, let it wait, or go on."""
    failed = [one for one in outcomes if isinstance(one, NoReply)]
    verdicts = [one for one in outcomes if isinstance(one, Reply) and verdict_in(one.text) is not None]
    with ctx.uow() as tx:
        judgement = tx.judgements.get_for_update(judgement_id)
        if judgement is None or judgement.state is not JudgementState.RUNNING:
            return
        judgement.fruitless = 0 if verdicts else judgement.fruitless + 1
        hopeless = next((one for one in failed if one.remedy is Remedy.PERSON), None)
        if hopeless is not None:
            _pause(judgement, str(hopeless))
        elif judgement.fruitless >= MAX_FRUITLESS:
            last = str(failed[-1]) if failed else NO_VERDICT
            _pause(judgement, f"{MAX_FRUITLESS} attempts in a row had no verdict. {last}")
        else:
            judgement.reason, wait_s = _wait(failed, judgement.fruitless)
            judgement.not_before = ctx.clock.now() + wait_s if wait_s else 0.0
        tx.judgements.save(judgement)


def _wait(failed: list[NoReply], fruitless: int) -> tuple[str, float]:
    """Why and how many seconds to wait before the next batch. 0 if every request had its answer."""
    later = [one for one in failed if one.remedy is Remedy.RETRY]
    if not later:
        return "", 0.0
    wanted = [one.retry_after_s for one in later if one.retry_after_s is not None]
    usual = RETRY_S[min(max(fruitless, 1), len(RETRY_S)) - 1]
    return str(later[-1]), min(max(max(wanted, default=usual), LEAST_WAIT_S), MAX_WAIT_S)
