"""Dependencies of endpoints: the server, the current member, and the job in the path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Path, Query, Request

from orchestrator.adapters.database.dashboard_queries import DashboardQueries
from orchestrator.adapters.database.openai_queries import OpenAIQueries
from orchestrator.adapters.database.queries import Queries
from orchestrator.bootstrap import App
from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import ForbiddenError, NotFoundError
from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.http.auth import Authenticator, actor, admin
from orchestrator.entrypoints.http.event_stream import EventNotifier
from orchestrator.entrypoints.http.logins import Logins
from orchestrator.entrypoints.http.machines import Machines
from orchestrator.entrypoints.http.metrics import Metrics
from orchestrator.entrypoints.http.rate_limit import RateLimit
from orchestrator.entrypoints.http.sign_ins import SignIns
from orchestrator.entrypoints.http.write_batcher import WriteBatcher
from orchestrator.services import access, members
from orchestrator.services.context import Context

STORED_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server's parts for endpoints, one per FastAPI application at `app.state.server`.

    `store_limiter` limits how many received files are put into other stores at once, so that other requests still find
    a thread.
    """

    app: App
    ctx: Context
    queries: Queries
    dashboard_queries: DashboardQueries
    openai_queries: OpenAIQueries
    logins: Logins
    sign_ins: SignIns
    machines: Machines
    auth: Authenticator
    write_batcher: WriteBatcher
    rate_limit: RateLimit
    event_notifier: EventNotifier
    metrics: Metrics
    store_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(STORED_AT_ONCE))


async def _server(request: Request) -> Server:
    return request.app.state.server


ServerDep = Annotated[Server, Depends(_server)]
CurrentUser = Annotated[Actor, Depends(actor)]
Admin = Annotated[Actor, Depends(admin)]
JobId = Annotated[str, Path(max_length=64, description="The job's id.")]
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def check_seen(server: Server, me: Actor, job_id: str) -> bool:
    """Whether the job is the member's own, or the member is an admin. Raises `NotFoundError` if it may not be seen."""
    owner = server.queries.owner(job_id)
    if owner is None or not me.may_see_jobs_of(owner[0]):
        raise NotFoundError(f"There is no job {job_id}.")
    return me.may_see(owner[0])


def check_own(server: Server, me: Actor, job_id: str) -> None:
    """Raise `NotFoundError` if the job may not be seen, and `ForbiddenError` if it is a colleague's."""
    if not check_seen(server, me, job_id):
        owner = server.queries.owner(job_id)
        raise ForbiddenError(access.not_yours(f"Job {job_id}", owner[1] if owner else ""))


def seen_job(server: ServerDep, me: CurrentUser, job_id: JobId) -> str:
    """The id of a job that the member may see."""
    check_seen(server, me, job_id)
    return job_id


def own_job(server: ServerDep, me: CurrentUser, job_id: JobId) -> str:
    """The id of the member's own job, or for an admin of any job."""
    check_own(server, me, job_id)
    return job_id


SeenJob = Annotated[str, Depends(seen_job)]
OwnJob = Annotated[str, Depends(own_job)]
MemberName = Annotated[str | None, Query(max_length=100, description="A member's name or id.")]


def whose(server: ServerDep, me: CurrentUser, member: MemberName = None) -> str | None:
    """The member id to filter by. None means all members. An unknown id means an empty result."""
    if member is None:
        return None if me.role is Role.ADMIN else me.member_id
    asked = server.queries.member_id(member)
    return asked if asked is not None and me.may_see(asked) else "nobody"


def whose_jobs(server: ServerDep, me: CurrentUser, member: MemberName = None) -> str | None:
    """As `whose`, for jobs, which all members may see if the team's setting says so."""
    if member is None:
        return me.jobs_seen
    asked = server.queries.member_id(member)
    return asked if asked is not None and me.may_see_jobs_of(asked) else "nobody"


OwnerFilter = Annotated[str | None, Depends(whose)]
JobsFilter = Annotated[str | None, Depends(whose_jobs)]


def revoke(server: Server, me: Actor, token_id: str) -> None:
    """Revoke a token at once, and the unused login links that may have been created with it."""
    gone = members.remove_token(server.ctx, me, token_id)
    server.auth.forget()
    server.logins.forget(gone.member_id)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": responses.Problem, "description": words}
    for status, words in {
        401: "The token is missing or not valid.",
        403: "The member's role does not allow this.",
        404: "Not found, or not visible to you.",
        409: "Not possible in the current state.",
        413: "Too large.",
        422: "The request is not valid. See `errors`.",
        503: "A required service does not answer. Try again.",
    }.items()
}
