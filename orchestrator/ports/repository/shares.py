"""The repository of links to pages of jobs."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.shares import Share


class ShareRepository(Protocol):
    """Links to pages of jobs."""

    def get(self, share_id: str) -> Share | None:
        """The link, locked against others until the transaction ends."""
        ...

    def get_by_hash(self, secret_hash: str) -> Share | None: ...
    def of_job(self, job_id: str) -> list[Share]:
        """All links of a job, newest first, also those that ended."""
        ...

    def add(self, share: Share) -> None: ...
    def save(self, share: Share) -> None: ...
