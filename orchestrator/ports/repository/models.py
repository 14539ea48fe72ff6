"""The repository of models."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.models import Candidate, Model, Move


class ModelRepository(Protocol):
    """Models by their member and name, with their candidates and their history."""

    def get(self, member_id: str, name: str) -> Model | None: ...
    def get_for_update(self, member_id: str, name: str) -> Model | None:
        """The model, locked against all others until the transaction ends."""
        ...

    def some(self, member_id: str | None, limit: int) -> list[Model]:
        """Up to `limit` models of a member, or of all members, by name."""
        ...

    def add(self, model: Model) -> None:
        """Add the model unless the member has one with this name."""
        ...

    def save(self, model: Model) -> None: ...
    def promoting(self, job_id: str) -> list[Model]:
        """The models in which this job's adapter is promoted."""
        ...

    def names_of(self, job_id: str) -> list[str]:
        """The names of the models with this job's adapter."""
        ...

    def candidates(self, member_id: str, name: str) -> list[Candidate]:
        """The model's candidates, newest first."""
        ...

    def add_candidate(self, candidate: Candidate) -> None:
        """Add the candidate unless the model has it."""
        ...

    def moves(self, member_id: str, name: str) -> list[Move]:
        """The model's history, oldest first."""
        ...

    def newest_move(self, model: Model) -> Move | None:
        """The last move of the model's history."""
        ...

    def add_move(self, move: Move) -> None: ...
