"""The repository of models."""

from __future__ import annotations

from sqlalchemy import select

from orchestrator.adapters.database import model_tables
from orchestrator.adapters.database.compiled_sql import Upsert
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.models import Candidate, Model, Move, MoveKind
from orchestrator.domain.trust.verdict import Recommendation

MODELS = Mapper(Model, model_tables.models)
CANDIDATES = Mapper(Candidate, model_tables.candidates)
MOVES = Mapper(Move, model_tables.moves, enums={"kind": MoveKind, "verdict": Recommendation})
_models, _candidates, _moves = model_tables.models.c, model_tables.candidates.c, model_tables.moves.c
_add_model, _add_candidate = Upsert(model_tables.models), Upsert(model_tables.candidates)


class SqlModelRepository(SqlRepository):
    """Implements `ports.repository.models.ModelRepository`."""

    def get(self, member_id: str, name: str) -> Model | None:
        return MODELS.get(self._connection, member_id=member_id, name=name)

    def get_for_update(self, member_id: str, name: str) -> Model | None:
        return MODELS.get(self._connection, lock=True, member_id=member_id, name=name)

    def some(self, member_id: str | None, limit: int) -> list[Model]:
        mine = () if member_id is None else (_models.member_id == member_id,)
        query = MODELS.select.where(*mine).order_by(_models.name, _models.member_id).limit(limit)
        return [MODELS.load(tuple(row)) for row in self._connection.execute(query)]

    def add(self, model: Model) -> None:
        _add_model.run(self._connection, MODELS.dump(model))

    def save(self, model: Model) -> None:
        MODELS.save(self._connection, model)

    def promoting(self, job_id: str) -> list[Model]:
        return MODELS.where(self._connection, _models.promoted == job_id, order=_models.name)

    def names_of(self, job_id: str) -> list[str]:
        query = select(_candidates.model).where(_candidates.job_id == job_id).order_by(_candidates.model)
        return list(self._connection.execute(query).scalars())

    def candidates(self, member_id: str, name: str) -> list[Candidate]:
        mine = (_candidates.member_id == member_id, _candidates.model == name)
        found = CANDIDATES.where(self._connection, *mine, order=_candidates.job_id.desc())
        return sorted(found, key=lambda one: one.added_at, reverse=True)

    def add_candidate(self, candidate: Candidate) -> None:
        _add_candidate.run(self._connection, CANDIDATES.dump(candidate))

    def moves(self, member_id: str, name: str) -> list[Move]:
        mine = (_moves.member_id == member_id, _moves.model == name)
        return MOVES.where(self._connection, *mine, order=_moves.number)

    def newest_move(self, model: Model) -> Move | None:
        return MOVES.get(self._connection, member_id=model.member_id, model=model.name, number=model.moves)

    def add_move(self, move: Move) -> None:
        MOVES.add(self._connection, move)
