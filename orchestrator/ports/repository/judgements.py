"""The repositories of judge endpoints and of judgements."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.judgements import JudgeAnswer, JudgeEndpoint, Judgement


class JudgeEndpointRepository(Protocol):
    """Addresses of judge models, by member."""

    def get(self, endpoint_id: str) -> JudgeEndpoint | None: ...
    def of_member(self, member_id: str) -> list[JudgeEndpoint]:
        """A member's endpoints by name."""
        ...

    def add(self, endpoint: JudgeEndpoint) -> bool:
        """Add the endpoint unless the member has one of this name. Returns whether it was added."""
        ...

    def save(self, endpoint: JudgeEndpoint) -> None: ...
    def delete(self, endpoint_id: str) -> None: ...


class JudgementRepository(Protocol):
    """Judgements of evaluations, with the judges' answers."""

    def get(self, judgement_id: str) -> Judgement | None: ...
    def get_for_update(self, judgement_id: str) -> Judgement | None:
        """The judgement, locked against all others until the transaction ends."""
        ...

    def of_evaluation(self, job_id: str) -> list[Judgement]:
        """The judgements of an evaluation, newest first."""
        ...

    def running(self) -> list[Judgement]:
        """All judgements that run, oldest first."""
        ...

    def add(self, judgement: Judgement) -> bool:
        """Add the judgement unless another one of its evaluation runs. Returns whether it was added."""
        ...

    def save(self, judgement: Judgement) -> None: ...
    def answers(self, judgement_id: str) -> list[JudgeAnswer]:
        """All answers, by prompt and order."""
        ...

    def add_answer(self, answer: JudgeAnswer) -> None:
        """Add an answer unless there is one on this prompt in this order."""
        ...
