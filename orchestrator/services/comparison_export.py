"""The votes of a closed blind comparison as a list, for files."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.blind_votes import count, first_arm, order, outcome_of
from orchestrator.domain.errors import ConflictError
from orchestrator.services.comparisons import comparison_of
from orchestrator.services.context import Context


@dataclass(frozen=True, kw_only=True)
class ExportedVote:
    """One vote. `place` is the prompt's place in the order, `prompt` its number in the evaluation (both from 1).

    `first` is the model whose answer was shown as 1. `outcome` is what the vote means, and `result` what all votes of
    the prompt say together (empty if it is not decided).
    """

    place: int
    prompt: int
    rater: str
    choice: str
    first: str
    outcome: str
    result: str
    note: str
    at: float


def export(ctx: Context, actor: Actor, comparison_id: str) -> list[ExportedVote]:
    """All votes in the order of the prompts. Raises `ConflictError` while the comparison is open."""
    with ctx.uow() as tx:
        comparison = comparison_of(tx, actor, comparison_id)
        if comparison.closed_at is None:
            raise ConflictError("Votes can be exported after the comparison was closed.")
        votes = tx.comparisons.votes(comparison_id)
        names = {rater.id: rater.name for rater in tx.comparisons.raters(comparison_id)}
    decided = count(comparison, votes).decided
    places = {number: place for place, number in enumerate(order(comparison), 1)}
    return [
        ExportedVote(
            place=places[vote.number],
            prompt=vote.number + 1,
            rater=names[vote.rater_id],
            choice=vote.choice,
            first=first_arm(comparison.key, vote.number, vote.rater_id),
            outcome=outcome_of(comparison.key, vote),
            result=decided.get(vote.number, ""),
            note=vote.note,
            at=vote.at,
        )
        for vote in sorted(votes, key=lambda vote: (places[vote.number], vote.at))
    ]
