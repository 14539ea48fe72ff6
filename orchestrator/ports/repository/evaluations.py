"""The repositories of evaluations, and of the blind comparisons of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.domain.comparisons import BlindComparison, Rater, Vote
from orchestrator.domain.evaluations import Answers, Evaluation


class EvaluationRepository(Protocol):
    """Evaluations by the id of their own job, with the answers to their prompts."""

    def get(self, job_id: str) -> Evaluation | None: ...
    def of_job(self, trained_job: str) -> list[Evaluation]:
        """The evaluations of a trained job, newest first."""
        ...

    def add(self, evaluation: Evaluation) -> None: ...
    def save(self, evaluation: Evaluation) -> None: ...
    def finish(self, evaluation: Evaluation, answers: Sequence[Answers]) -> None:
        """Save the finished evaluation, and replace its answers by these."""
        ...

    def answer(self, job_id: str, number: int) -> Answers | None:
        """The answers to one prompt."""
        ...

    def lengths(self, job_id: str) -> dict[int, tuple[int, int]]:
        """The tokens of the base's and the adapter's answer, by the number of the prompt."""
        ...


class ComparisonRepository(Protocol):
    """Blind comparisons, with their raters and votes."""

    def get(self, comparison_id: str) -> BlindComparison | None: ...
    def get_for_update(self, comparison_id: str) -> BlindComparison | None:
        """The comparison, locked against all others until the transaction ends."""
        ...

    def of_evaluation(self, job_id: str) -> list[BlindComparison]:
        """The comparisons of an evaluation, newest first."""
        ...

    def add(self, comparison: BlindComparison) -> bool:
        """Add the comparison unless its evaluation has an open one. Returns whether it was added."""
        ...

    def save(self, comparison: BlindComparison) -> None: ...
    def raters(self, comparison_id: str) -> list[Rater]:
        """The raters, oldest first."""
        ...

    def rater(self, rater_id: str) -> Rater | None: ...
    def rater_for_update(self, rater_id: str) -> Rater | None:
        """The rater, locked against all others until the transaction ends."""
        ...

    def rater_by_link(self, link_hash: str) -> Rater | None:
        """The rater whose unused link has this hash."""
        ...

    def add_rater(self, rater: Rater) -> None: ...
    def save_rater(self, rater: Rater) -> None: ...
    def votes(self, comparison_id: str) -> list[Vote]:
        """All votes, oldest first."""
        ...

    def put_vote(self, vote: Vote) -> None:
        """Add a vote, or replace the choice and the note of the rater's earlier one. Its time stays."""
        ...
