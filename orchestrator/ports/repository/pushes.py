"""The repository of pushes to the Hugging Face hub."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.pushes import Push


class PushRepository(Protocol):
    """Pushes of jobs' adapters."""

    def get(self, push_id: str) -> Push | None: ...
    def get_for_update(self, push_id: str) -> Push | None:
        """The push, locked against all others until the transaction ends."""
        ...

    def of_job(self, job_id: str) -> list[Push]:
        """The pushes of a job, newest first."""
        ...

    def running_of_job(self, job_id: str) -> Push | None:
        """The push of a job that runs. There is at most one."""
        ...

    def running(self) -> list[Push]:
        """All pushes that run, oldest first."""
        ...

    def akin(self, push: Push) -> list[str]:
        """The ids of pushes to the same repository, of this job and of candidates of the models that have it."""
        ...

    def add(self, push: Push) -> None: ...
    def save(self, push: Push) -> None: ...
