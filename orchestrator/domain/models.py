"""The registry of models: candidates, and which of them is promoted.

A model is a name under which a member keeps candidates. A candidate is the adapter of one finished job and never
changes. `promoted` moves from one candidate to another, and each move stays in the model's history.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.errors import ConflictError
from orchestrator.domain.trust.verdict import Recommendation, Verdict

MAX_MODELS, MAX_CANDIDATES, MAX_MOVES = 1_000, 100, 10_000
"""Models of a member, candidates of a model, and moves in its history."""


class MoveKind(StrEnum):
    """Why `promoted` moved."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The adapter of a finished job, added to a model."""

    member_id: str
    model: str
    job_id: str
    adapter_sha256: str
    added_at: float


@dataclass(frozen=True, kw_only=True)
class Move:
    """One move of `promoted` from a job to another (None: nothing was promoted).

    `number` counts from 1 in each model. `actor` is the name of who moved it. `verdict` and `reasons` are those of the
    new candidate at that time, or None if nothing is promoted since.
    """

    member_id: str
    model: str
    number: int
    kind: MoveKind
    actor: str
    at: float
    before: str | None
    after: str | None
    verdict: Recommendation | None
    reasons: list[str]

    @property
    def against_verdict(self) -> bool:
        """Whether a candidate was promoted that the verdict did not recommend."""
        return self.after is not None and self.verdict is not Recommendation.PROMOTE


@dataclass(kw_only=True)
class Model:
    """A model of a member. `promoted` is the job of the promoted candidate. `moves` counts the moves so far."""

    member_id: str
    name: str
    created_at: float
    promoted: str | None = None
    moves: int = 0

    def move(self, to: str | None, verdict: Verdict | None, kind: MoveKind, *, actor: str, at: float) -> Move:
        """Move `promoted`. Raises `ConflictError` if it is there, or if the history is full."""
        if to == self.promoted:
            raise ConflictError(f"The adapter of {to} is already promoted in model {self.name}.")
        if self.moves >= MAX_MOVES:
            raise ConflictError(f"The history of model {self.name} is full ({MAX_MOVES} moves). Use another name.")
        self.moves += 1
        before, self.promoted = self.promoted, to
        return Move(
            member_id=self.member_id,
            model=self.name,
            number=self.moves,
            kind=kind,
            actor=actor,
            at=at,
            before=before,
            after=to,
            verdict=verdict.answer if verdict is not None else None,
            reasons=list(verdict.reasons) if verdict is not None else [],
        )


def refuse_unless(verdict: Verdict, *, forced: bool) -> None:
    """Raise `ConflictError` with the verdict's reasons unless it recommends the promotion, or the move is forced."""
    if verdict.answer is Recommendation.PROMOTE or forced:
        return
    more = f" About {verdict.more} more ratings would probably decide." if verdict.more else ""
    raise ConflictError(f"The verdict is: {verdict.answer}. {' '.join(verdict.reasons)}{more}")


def rollback_target(moves: Iterable[Move], available: Collection[str]) -> str | None:
    """The job that was promoted before the present one, and whose adapter still exists (None: none was).

    `moves` is the whole history in its order. A rollback undoes the last promotion that is not undone yet, so that a
    second rollback goes one candidate further back.
    """
    stack: list[str] = []
    for move in moves:
        if move.kind is MoveKind.PROMOTION and move.after is not None:
            stack.append(move.after)
        else:
            _go_back(stack, move.after)
    return next((job for job in reversed(stack[:-1]) if job in available and job != stack[-1]), None)


def _go_back(stack: list[str], to: str | None) -> None:
    while stack and stack[-1] != to:
        stack.pop()
