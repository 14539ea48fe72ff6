"""HTTP endpoints for notebooks: create one, claim its job, and download the worker."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from orchestrator.domain.errors import NotFoundError
from orchestrator.entrypoints.api import notebook_file, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep, Sha256
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import mailbox as mailboxes
from orchestrator.services import notebooks as claims
from worker.shared import wheel as bundle
from worker.shared.loopback import is_loopback
from worker.shared.notebook_messages import Claimed, ClaimRequest

router = APIRouter(prefix=PREFIX, route_class=ApiRoute, responses=PROBLEMS)
Reach = Annotated[
    Literal["http", "drive"] | None,
    Query(description="How the notebook reaches this server. By default through Drive if HTTP is not possible."),
]
Drive = Annotated[
    bool, Query(description="Also save it to the Google Drive in use and return the link that opens it there.")
]


@router.post(
    "/jobs/{job_id}:notebook",
    status_code=201,
    tags=["jobs"],
    operation_id="make_notebook",
    summary="Create a notebook for a job",
)
def make(
    server: ServerDep, me: CurrentUser, job_id: JobId, reach: Reach = None, drive: Drive = False
) -> responses.Notebook:
    """For the job's owner to open and run in a notebook editor. Its code works once, for this job."""
    ctx, wheel = server.ctx, _worker()
    job = claims.check_job(ctx, me, job_id)
    if drive:
        mailboxes.need_mailbox_store(ctx)
    if reach == "drive" or (reach is None and ctx.public_url is None and mailboxes.mailbox_store(ctx) is not None):
        mailbox, addresses, owner = mailboxes.open_mailbox(ctx, wheel)
        code, claim = claims.make_code(ctx, me, job_id, store=ctx.stores.current().name, mailbox=mailbox)
        way: str | notebook_file.Mailbox = notebook_file.Mailbox(addresses=addresses, owner=owner)
        note = f"It connects to this server through Google Drive. Sign in to Google as {owner}"
    else:
        code, claim = claims.make_code(ctx, me, job_id)
        way = (ctx.public_url or ctx.server_url()).rstrip("/")
        note = _who_can_call(way)
    hours = (claim.expires_at - claim.created_at) / 3600
    document = notebook_file.document(name=job.name, code=code, reach=way, wheel=wheel, hours=hours)
    answer: dict[str, Any] = {
        "job": job.id,
        "file_name": notebook_file.file_name(job.name),
        "expires_at": claim.expires_at,
    }
    if drive:
        link, owner = mailboxes.publish(ctx, job.id, answer["file_name"], json.dumps(document))
        answer["url"], note = link, ". ".join(filter(None, (f"Sign in to Google as {owner} before you open it", note)))
    return responses.Notebook.model_validate(answer | {"note": note, "notebook": document})


def _worker() -> bundle.Wheel:
    """The worker of notebooks. Any job may be run there, also an export or a chat."""
    return bundle.build(adapters=True)


def _who_can_call(address: str) -> str:
    """A note on where the server is reachable from. Empty if it is public."""
    if not is_loopback(address):
        return ""
    return (
        f"Only programs on the server's own computer can reach {address}. Run the notebook in Jupyter there. "
        "To run it elsewhere, use a Google Drive (trainhop store use drive), or start the server with "
        "TRAINHOP_PUBLIC_URL set to its public address"
    )


@router.post("/claims", tags=["worker"], operation_id="claim_job", summary="Exchange a notebook's code for a lease")
def claim(server: ServerDep, request: Request, asked: ClaimRequest) -> Claimed:
    """A code works once, for one job. It stays valid if the machine does not fit the job."""
    with server.rate_limit.counted(request.client.host if request.client else ""):
        return claims.claim(server.ctx, asked)


@router.get(
    "/worker/{sha256}/{name}",
    tags=["worker"],
    operation_id="worker_wheel",
    summary="Download the worker as a wheel",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def wheel(sha256: Sha256, name: Annotated[str, Path(max_length=100)]) -> Response:
    """The wheel with this hash. It needs no token because it has no secrets."""
    found = _worker()
    if (sha256, name) != (found.sha256, found.name):
        raise NotFoundError("This server has another version of the worker. Create a new notebook.")
    return Response(found.data, media_type="application/octet-stream")
