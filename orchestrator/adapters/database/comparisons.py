"""The repository of blind comparisons, their raters and votes."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select, update

from orchestrator.adapters.database import evaluation_tables as tables
from orchestrator.adapters.database.compiled_sql import Upsert
from orchestrator.adapters.database.judgements import delete_judgements
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.choices import GainKind
from orchestrator.domain.comparisons import BlindComparison, Choice, Ending, PlanName, Rater, Vote

COMPARISONS = Mapper(
    BlindComparison,
    tables.comparisons,
    enums={"plan": PlanName, "ending": Ending, "gain": GainKind},
    frozen=("job_id", "member_id", "key", "prompts", "identical", "created_at"),
)
RATERS = Mapper(Rater, tables.raters, frozen=("comparison_id", "created_at"))
VOTES = Mapper(Vote, tables.votes, enums={"choice": Choice})
_comparisons, _raters, _votes = tables.comparisons.c, tables.raters.c, tables.votes.c
_add_comparison, _put_vote = Upsert(tables.comparisons), Upsert(tables.votes, ("choice", "note"))


class SqlComparisonRepository(SqlRepository):
    """Implements `ports.repository.evaluations.ComparisonRepository`."""

    def get(self, comparison_id: str) -> BlindComparison | None:
        return COMPARISONS.get(self._connection, id=comparison_id)

    def get_for_update(self, comparison_id: str) -> BlindComparison | None:
        return COMPARISONS.get(self._connection, lock=True, id=comparison_id)

    def of_evaluation(self, job_id: str) -> list[BlindComparison]:
        order = _comparisons.id.desc()  # ids begin with the time
        return COMPARISONS.where(self._connection, _comparisons.job_id == job_id, order=order)

    def add(self, comparison: BlindComparison) -> bool:
        _add_comparison.run(self._connection, COMPARISONS.dump(comparison))
        return self.get(comparison.id) is not None

    def save(self, comparison: BlindComparison) -> None:
        COMPARISONS.save(self._connection, comparison)

    def raters(self, comparison_id: str) -> list[Rater]:
        return RATERS.where(self._connection, _raters.comparison_id == comparison_id, order=_raters.id)

    def rater(self, rater_id: str) -> Rater | None:
        return RATERS.get(self._connection, id=rater_id)

    def rater_for_update(self, rater_id: str) -> Rater | None:
        return RATERS.get(self._connection, lock=True, id=rater_id)

    def rater_by_link(self, link_hash: str) -> Rater | None:
        found = RATERS.where(self._connection, _raters.link_hash == link_hash)
        return found[0] if found else None

    def add_rater(self, rater: Rater) -> None:
        RATERS.add(self._connection, rater)

    def save_rater(self, rater: Rater) -> None:
        RATERS.save(self._connection, rater)

    def votes(self, comparison_id: str) -> list[Vote]:
        order = (_votes.at, _votes.number, _votes.rater_id)
        rows = self._connection.execute(VOTES.select.where(_votes.comparison_id == comparison_id).order_by(*order))
        return [VOTES.load(tuple(row)) for row in rows]

    def put_vote(self, vote: Vote) -> None:
        _put_vote.run(self._connection, VOTES.dump(vote))


def delete_evaluation(connection: Connection, job_id: str) -> None:
    """Delete an evaluation with its answers, comparisons, raters, votes and judgements."""
    delete_judgements(connection, job_id)
    theirs = select(_comparisons.id).where(_comparisons.job_id == job_id)
    for statement in (
        delete(tables.votes).where(_votes.comparison_id.in_(theirs)),
        delete(tables.raters).where(_raters.comparison_id.in_(theirs)),
        delete(tables.comparisons).where(_comparisons.job_id == job_id),
        delete(tables.evaluation_answers).where(tables.evaluation_answers.c.job_id == job_id),
        delete(tables.evaluations).where(tables.evaluations.c.job_id == job_id),
    ):
        connection.execute(statement)


def revoke_raters(connection: Connection, member_id: str, at: float | None) -> None:
    """Revoke the links and cookies of all raters in a member's comparisons."""
    theirs = select(_comparisons.id).where(_comparisons.member_id == member_id)
    revoked = {"link_hash": None, "cookie_hash": None, "revoked_at": func.coalesce(_raters.revoked_at, at)}
    connection.execute(update(tables.raters).where(_raters.comparison_id.in_(theirs)).values(revoked))
