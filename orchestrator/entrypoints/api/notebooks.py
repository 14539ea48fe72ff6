"""Notebooks over HTTP: making one, claiming its job from inside it, and the worker that it fetches."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from orchestrator.domain.errors import NotFoundError
from orchestrator.entrypoints.api import notebook_file, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, PlainTextRoute, ServerDep, Sha256
from orchestrator.services import mailbox as letters
from orchestrator.services import notebooks as claims
from worker.shared import wheel as bundle
from worker.shared.notebook_messages import Claimed, ClaimRequest

router = APIRouter(route_class=PlainTextRoute, responses=PROBLEMS)
Reach = Annotated[
    Literal["http", "drive"] | None,
    Query(description="How the notebook reaches this server; by default through Drive where only that works."),
]
Drive = Annotated[
    bool,
    Query(description="Also put it into the Google Drive in use, and answer with the link that opens it in Colab."),
]
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@router.post(
    "/jobs/{job_id}:notebook",
    status_code=201,
    tags=["jobs"],
    operation_id="make_notebook",
    summary="A notebook that trains a job",
)
def make(
    server: ServerDep, me: CurrentUser, job_id: JobId, reach: Reach = None, drive: Drive = False
) -> responses.Notebook:
    """For the job's owner to open in Colab, Kaggle or Jupyter and to run there. Its code works once, for this job."""
    ctx, wheel = server.ctx, bundle.build()
    job = claims.check_job(ctx, me, job_id)
    if drive:
        letters.need_letter_store(ctx)
    if reach == "drive" or (reach is None and ctx.public_url is None and letters.letter_store(ctx) is not None):
        mailbox, addresses, owner = letters.open_mailbox(ctx, wheel)
        code, claim = claims.make_code(ctx, me, job_id, store=ctx.stores.current().name, mailbox=mailbox)
        way: str | notebook_file.Mailbox = notebook_file.Mailbox(addresses=addresses, owner=owner)
        note = f"it reaches this server through Google Drive: sign in there as {owner}"
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
        link, owner = letters.publish(ctx, job.id, answer["file_name"], json.dumps(document))
        answer["url"], note = link, "; ".join(filter(None, (f"open it signed in at Google as {owner}", note)))
    return responses.Notebook.model_validate(answer | {"note": note, "notebook": document})


def _who_can_call(address: str) -> str:
    """From where the server can be called, if not from everywhere; empty if it can."""
    if urlsplit(address).hostname not in _LOOPBACK:
        return ""
    return (
        f"this server is known as {address}, which only programs on its own computer can call: the notebook runs in Jupyter "
        "there; for Colab or Kaggle use a Google Drive (trainhop store use drive), or start the server with "
        "TRAINHOP_PUBLIC_URL set to an address that others can call"
    )


@router.post("/claims", tags=["worker"], operation_id="claim_job", summary="Exchange a notebook's code for a lease")
def claim(server: ServerDep, request: Request, asked: ClaimRequest) -> Claimed:
    """A code works once, for one job. A machine that does not fit is told so and may try again with a better one."""
    with server.guesses.counted(request.client.host if request.client else ""):
        return claims.claim(server.ctx, asked)


@router.get(
    "/worker/{sha256}/{name}",
    tags=["worker"],
    operation_id="worker_wheel",
    summary="The worker as a wheel",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def wheel(sha256: Sha256, name: Annotated[str, Path(max_length=100)]) -> Response:
    """The very one with this hash, as the notebook that asks for it was made; open to all, for it holds no secret."""
    found = bundle.build()
    if (sha256, name) != (found.sha256, found.name):
        raise NotFoundError("this server has another version of the worker: make a new notebook")
    return Response(found.data, media_type="application/octet-stream")
