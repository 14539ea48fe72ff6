"""API responses about pushes to the Hugging Face hub."""

from __future__ import annotations

from orchestrator.domain.pushes import PushState
from orchestrator.entrypoints.api.responses import ResponseModel, Time


class Push(ResponseModel):
    """A push of the adapter of `job` to the repository `repo`. `reason` says why it failed or waits until `not_before`.

    `commit` has the adapter. `made_commit` is false if the repository had all the files already.
    """

    id: str
    job: str
    repo: str
    is_public: bool
    replace: bool
    state: PushState
    reason: str
    not_before: Time | None
    commit: str | None
    made_commit: bool
    created_at: Time
    finished_at: Time | None
