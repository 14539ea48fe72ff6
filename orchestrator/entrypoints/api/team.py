"""HTTP endpoints for the team's settings."""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import team

router = APIRouter(prefix=f"{PREFIX}/team", tags=["people"], route_class=ApiRoute, responses=PROBLEMS)


class TeamUpdate(requests.RequestModel):
    """What members see of each other. With `everyone_sees_jobs`, all members see all jobs."""

    everyone_sees_jobs: bool


class Team(responses.ResponseModel):
    """The team's settings."""

    everyone_sees_jobs: bool


@router.get("", operation_id="get_team", summary="Get the team's settings")
def show(server: ServerDep, _: CurrentUser) -> Team:
    """What members see of each other."""
    return Team.model_validate(team.settings(server.ctx))


@router.put("", operation_id="change_team", summary="Change the team's settings")
def put(server: ServerDep, me: Admin, asked: TeamUpdate) -> Team:
    """For admins. To see a job is its page, curve, sessions, events, samples, logs and verdict.

    Actions on a job, its adapter and its data stay those of its owner and of admins.
    """
    changed = team.change(server.ctx, me, everyone_sees_jobs=asked.everyone_sees_jobs)
    server.auth.forget()
    return Team.model_validate(changed)
