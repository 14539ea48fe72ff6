"""The page of a job that a link opens without log-in, the same page as a file, and the form that makes links."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup
from pydantic import Field

from orchestrator.domain.errors import GoneError, TrainhopError
from orchestrator.domain.shares import Share
from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.api.responses import Time
from orchestrator.entrypoints.dashboard import journey
from orchestrator.entrypoints.dashboard.assets import assets
from orchestrator.entrypoints.dashboard.curve import OwnedJob
from orchestrator.entrypoints.dashboard.render import Viewer, fragment, page
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, OwnJob, Server, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import shares
from orchestrator.services.follow_ups import refuse_follow_up

router = APIRouter(include_in_schema=False)
api = APIRouter(prefix=PREFIX, tags=["records"], route_class=ApiRoute, responses=PROBLEMS)
MAX_DAYS = 3_650
ShareId = Annotated[str, Path(max_length=64, description="The link's id.")]
WithSamples = Annotated[bool, Query(description="Whether the page has the first and last answers to sample prompts.")]


class ShareCreate(requests.RequestModel):
    """A link to make. With `samples`, the page has the first and last answers to the job's sample prompts.

    It works for `days`, or until it is revoked.
    """

    samples: bool = False
    days: Annotated[float, Field(ge=1, le=MAX_DAYS)] | None = None


class ShareLink(responses.ResponseModel):
    """A link to a job's page, with who made it. `ended` is the reason why it no longer works."""

    id: str
    job: str
    member: str
    samples: bool
    created_at: Time
    expires_at: Time | None
    ended: str


class NewShareLink(ShareLink):
    """A link that was just made. `url` is shown only once."""

    url: str


def _shown(server: Server, share: Share, maker: str) -> dict[str, Any]:
    more = {"job": share.job_id, "member": maker, "samples": share.with_samples}
    return vars(share) | more | {"ended": share.ended(server.ctx.clock.now())}


def _address(server: Server, secret: str) -> str:
    return f"{(server.app.settings.public_url or server.ctx.server_url()).rstrip('/')}/share/{secret}"


@api.post("/jobs/{job_id}/shares", status_code=201, operation_id="share_job", summary="Make a link to a job's page")
def create(server: ServerDep, me: CurrentUser, job_id: JobId, asked: ShareCreate) -> NewShareLink:
    """Anyone with the link sees curve, route and card of the job without log-in, and nothing else.

    The page has no names of members or accounts, paths, hosts or rows of data.
    """
    share, secret = shares.create(server.ctx, me, job_id, with_samples=asked.samples, days=asked.days)
    return NewShareLink.model_validate(_shown(server, share, me.name) | {"url": _address(server, secret)})


@api.get("/jobs/{job_id}/shares", operation_id="list_shares", summary="List the links to a job's page")
def listing(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.Items[ShareLink]:
    """Newest first, also those that ended. Their addresses are not stored."""
    found = shares.listed(server.ctx, me, job_id)
    items = [ShareLink.model_validate(_shown(server, share, maker)) for share, maker in found]
    return responses.Items[ShareLink](items=items)


@api.delete("/jobs/{job_id}/shares/{share_id}", status_code=204, operation_id="revoke_share", summary="Revoke a link")
def remove(server: ServerDep, me: CurrentUser, job_id: JobId, share_id: ShareId) -> None:
    """The link stops working at once."""
    shares.revoke(server.ctx, me, job_id, share_id)


@api.get(
    "/jobs/{job_id}/journey",
    operation_id="download_journey",
    summary="Download a job's page as one HTML file",
    response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def file(server: ServerDep, job_id: OwnJob, samples: WithSamples = False) -> Response:
    """The page that a link shows, as a file that loads nothing."""
    return _file(server, job_id, samples)


@router.get("/jobs/{job_id}/journey.html")
def download(server: ServerDep, job_id: OwnedJob, samples: bool = False) -> Response:
    """The same for a browser."""
    return _file(server, job_id, samples)


def _file(server: Server, job_id: str, samples: bool) -> Response:
    with server.ctx.uow() as tx:
        refuse_follow_up(tx.jobs.get_many([job_id])[job_id], "Share")
    found = journey.of_job(server, job_id, with_samples=samples)
    assert found is not None
    style = Markup(assets()["app.css"].plain.decode())  # noqa: S704  our own file
    text = fragment("shared.html", found=found, style=style, now=server.ctx.clock.now())
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(f'{job_id}.html')}"}
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/share/{secret}")
def shared(request: Request, server: ServerDep, secret: Annotated[str, Path(max_length=100)]) -> Response:
    """The page of a link. It needs no log-in, and is not kept by caches, so that revoking it works at once."""
    try:
        share = shares.open_link(server.ctx, secret)
        found = journey.of_job(server, share.job_id, with_samples=share.with_samples)
        if found is None:
            raise GoneError(shares.DELETED)
    except TrainhopError as error:
        status = 410 if isinstance(error, GoneError) else 404
        return page(request, "shared_ended.html", None, status=status, detail=str(error))
    headers = {"X-Robots-Tag": "noindex"}
    return page(request, "shared.html", None, headers=headers, found=found, style="")


def section(server: Server, job_id: str) -> list[tuple[Share, str, str]]:
    """The links of a job for its own page, with who made them and why they ended."""
    now = server.ctx.clock.now()
    return [(share, maker, share.ended(now)) for share, maker in shares.of_job(server.ctx, job_id)]


@router.post("/jobs/{job_id}/shares")
def make(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: OwnedJob,
    samples: Annotated[bool, Form()] = False,
    days: Annotated[str, Form(pattern=r"^([1-9][0-9]{0,3})?$")] = "",
) -> Response:
    """Make a link, and show it once."""
    lives = min(float(days), MAX_DAYS) if days else None
    _, secret = shares.create(server.ctx, me, job_id, with_samples=samples, days=lives)
    return page(request, "share_made.html", me, job_id=job_id, url=_address(server, secret))


@router.post("/jobs/{job_id}/shares/{share_id}/revoke")
def revoke(server: ServerDep, me: Viewer, job_id: OwnedJob, share_id: ShareId) -> Response:
    """Revoke a link, and go back to the job's page."""
    shares.revoke(server.ctx, me, job_id, share_id)
    return RedirectResponse(f"/jobs/{job_id}#share", 303)
