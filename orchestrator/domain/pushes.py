"""Pushes of adapters to the Hugging Face hub: each is one commit, or none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_PUSHES = 50
"""Pushes of one job."""


class PushState(StrEnum):
    """The state of a push. A failed one can be repeated."""

    RUNNING = "running"
    PUSHED = "pushed"
    FAILED = "failed"


@dataclass(kw_only=True)
class Push:
    """The push of a job's adapter to the repository `repo` (`OWNER/NAME`) with the hub token of `member_id`.

    The commit names `id`, so the server recognises its own commit after any failure. A repeated push keeps its id until
    it has succeeded. `is_public` allows a public repository, `replace` one that has other files. `reason` says why it
    failed or waits, and nothing is sent before `not_before`. `attempts` counts failures since it was last started.
    `commit_id` is the commit that has the adapter, and `made_commit` says whether this push has made it.
    """

    id: str
    job_id: str
    member_id: str
    repo: str
    is_public: bool
    replace: bool
    created_at: float
    state: PushState = PushState.RUNNING
    reason: str = ""
    attempts: int = 0
    not_before: float = 0.0
    commit_id: str = ""
    made_commit: bool = False
    finished_at: float | None = None
