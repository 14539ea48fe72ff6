"""The repositories of runs at experiment trackers and of members' logins there."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.tracking import CurveRow, SealedLogin, TrackedRun


class TrackingRepository(Protocol):
    """Runs of jobs at trackers, with the curve that they are written from, and members' logins."""

    def add(self, run: TrackedRun) -> None: ...
    def save(self, run: TrackedRun) -> None: ...
    def get_for_update(self, job_id: str, tracker: str) -> TrackedRun | None:
        """The run, locked against all others until the transaction ends."""
        ...

    def of_job(self, job_id: str) -> list[TrackedRun]: ...
    def unfinished(self) -> list[TrackedRun]:
        """Runs of all jobs whose end was not told yet."""
        ...

    def due(self, now: float, limit: int) -> list[TrackedRun]:
        """Unfinished runs that may be tried now, of jobs with new checkpoints or with an end to tell."""
        ...

    def reopen(self, job_id: str) -> None:
        """Write the runs of a job again that is queued again after its end."""
        ...

    def newest_step(self, job_id: str) -> int:
        """The last step of a job's curve, -1 for none."""
        ...

    def curve(self, job_id: str, after: int, limit: int) -> list[CurveRow]:
        """Values of the next `limit` steps after `after`."""
        ...

    def login(self, member_id: str, tracker: str) -> SealedLogin | None: ...
    def logins(self, member_id: str) -> list[SealedLogin]: ...
    def put_login(self, login: SealedLogin) -> None:
        """Replace a member's login, and try the runs that wait for a better one at once."""
        ...

    def delete_login(self, member_id: str, tracker: str) -> None: ...
