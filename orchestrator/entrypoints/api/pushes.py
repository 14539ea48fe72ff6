"""HTTP endpoints for pushes of adapters to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from orchestrator.domain.pushes import Push
from orchestrator.entrypoints.api import push_responses, requests
from orchestrator.entrypoints.api.jobs import Key
from orchestrator.entrypoints.api.responses import Items
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import pushes
from orchestrator.services.pushes import Wish

router = APIRouter(prefix=PREFIX, tags=["models"], route_class=ApiRoute, responses=PROBLEMS)
PushId = Annotated[str, Path(max_length=64, description="The push's id.")]


@router.post(
    "/jobs/{job_id}/pushes", status_code=201, operation_id="push_adapter", summary="Push an adapter to the hub"
)
def start(
    server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.PushCreate, key: Key = None
) -> push_responses.Push:
    """The server pushes the PEFT folder to the Hugging Face hub as one commit, with your own hub token.

    A push that is under way is returned as it is. A failed push to the same repository is repeated.
    """
    wish = Wish(repo=asked.repo, is_public=asked.public, replace=asked.replace)
    return _push(pushes.start(server.ctx, me, job_id, wish, key=key))


@router.get("/jobs/{job_id}/pushes", operation_id="list_pushes", summary="List the pushes of a job")
def listing(server: ServerDep, me: CurrentUser, job_id: JobId) -> Items[push_responses.Push]:
    """Newest first."""
    return Items[push_responses.Push](items=[_push(each) for each in pushes.listed(server.ctx, me, job_id)])


@router.get("/pushes/{push_id}", operation_id="get_push", summary="Get a push")
def one(server: ServerDep, me: CurrentUser, push_id: PushId) -> push_responses.Push:
    """The push with its state."""
    return _push(pushes.one(server.ctx, me, push_id))


def _push(push: Push) -> push_responses.Push:
    more = {"job": push.job_id, "not_before": push.not_before or None, "commit": push.commit_id or None}
    return push_responses.Push.model_validate(vars(push) | more)
