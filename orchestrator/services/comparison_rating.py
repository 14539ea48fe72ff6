"""What raters do in a blind comparison: they see one prompt after the other with two answers, and choose one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.blind_votes import asked, count, ending, first_arm, next_number, screen_name
from orchestrator.domain.comparisons import BlindComparison, Choice, Vote
from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.domain.evaluations import Arm
from orchestrator.ports.repository import Transaction
from orchestrator.services.comparison_raters import rater_with
from orchestrator.services.comparisons import end
from orchestrator.services.context import Context

MAX_NOTE = 2_000
CLOSED = "This comparison is closed. Your earlier votes are kept. Thank you."
DECIDED = "You rated this prompt already, and it is decided. Your first vote is kept."


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A prompt as a rater sees it. `name` goes with the vote. `answers` are the texts that are shown as 1 and 2."""

    name: str
    prompt: tuple[tuple[str, str], ...]
    answers: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a rater sees: the question, how many prompts they rated, and the next one.

    `screen` is None if no prompt needs a vote of theirs, or after the comparison was closed.
    """

    rater: str
    question: str
    rated: int
    is_closed: bool
    screen: Screen | None


def desk(ctx: Context, rater_id: str, cookie: str) -> Desk:
    """The rater's next prompt. Raises `NotFoundError` for a wrong cookie or a revoked link."""
    with ctx.uow() as tx:
        rater = rater_with(ctx, tx, rater_id, cookie)
        comparison = _comparison(tx, rater.comparison_id)
        votes = tx.comparisons.votes(comparison.id)
        number = None
        if comparison.closed_at is None:
            number = next_number(comparison, votes, rater_id, ctx.clock.now())
        screen = None if number is None else _screen(tx, comparison, number, rater_id)
    return Desk(
        rater=rater.name,
        question=comparison.question,
        rated=sum(vote.rater_id == rater_id for vote in votes),
        is_closed=comparison.closed_at is not None,
        screen=screen,
    )


def _comparison(tx: Transaction, comparison_id: str, *, lock: bool = False) -> BlindComparison:
    found = tx.comparisons.get_for_update(comparison_id) if lock else tx.comparisons.get(comparison_id)
    if found is None:
        raise NotFoundError("This comparison was deleted.")
    return found


def _screen(tx: Transaction, comparison: BlindComparison, number: int, rater_id: str) -> Screen:
    found = tx.evaluations.answer(comparison.job_id, number)
    if found is None:
        raise NotFoundError("The answers of this evaluation were deleted.")
    is_base_first = first_arm(comparison.key, number, rater_id) is Arm.BASE
    return Screen(
        name=screen_name(comparison.key, number, rater_id),
        prompt=tuple((turn["role"], turn["content"]) for turn in found.prompt),
        answers=(found.base, found.adapter) if is_base_first else (found.adapter, found.base),
    )


def give(ctx: Context, rater_id: str, cookie: str, *, screen: str, choice: Choice, note: str = "") -> None:
    """Vote on a prompt by the name of its screen, and close the comparison if that decides it.

    The same vote again changes nothing. Another one replaces the first until the prompt is decided. A vote on a prompt
    that others have decided in the meantime is kept for their agreement. Raises `ConflictError` for a vote that is too
    late.
    """
    with ctx.uow() as tx:
        comparison = _comparison(tx, rater_with(ctx, tx, rater_id, cookie).comparison_id, lock=True)
        rater_with(ctx, tx, rater_id, cookie)  # again, because the link may have been revoked before the lock
        number = _number(comparison, screen, rater_id)
        votes = tx.comparisons.votes(comparison.id)
        earlier = next((v for v in votes if (v.number, v.rater_id) == (number, rater_id)), None)
        if earlier is not None and earlier.choice is choice:
            return
        if comparison.closed_at is not None:
            raise ConflictError(CLOSED)
        if earlier is not None and number in count(comparison, votes).decided:
            raise ConflictError(DECIDED)
        vote = Vote(
            comparison_id=comparison.id,
            number=number,
            rater_id=rater_id,
            choice=choice,
            note=_plain(note),
            at=_after(votes, ctx.clock.now()),
        )
        tx.comparisons.put_vote(vote if earlier is None else replace(vote, at=earlier.at))
        why = ending(comparison, count(comparison, tx.comparisons.votes(comparison.id)))
        if why is not None:
            end(tx, comparison, why, ctx.clock.now())


def _number(comparison: BlindComparison, screen: str, rater_id: str) -> int:
    for number in asked(comparison):
        if screen_name(comparison.key, number, rater_id) == screen:
            return number
    raise NotFoundError("This vote belongs to no prompt of the comparison. Open the page again.")


def _after(votes: Sequence[Vote], now: float) -> float:
    """The present, but after all votes that the test has seen, so that their order only grows."""
    return max(now, math.nextafter(votes[-1].at, math.inf)) if votes else now


def _plain(text: str) -> str:
    """Text that both databases can store: PostgreSQL has no NUL characters."""
    return text.replace("\0", " ").strip()[:MAX_NOTE]
