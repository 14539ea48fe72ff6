"""The page of a rater in a blind comparison. A link opens it without an account, in one browser."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.comparisons import Choice
from orchestrator.domain.errors import ConflictError, NotFoundError, TrainhopError
from orchestrator.entrypoints.dashboard.render import page
from orchestrator.entrypoints.http.auth import cookie_name
from orchestrator.entrypoints.http.dependencies import ServerDep
from orchestrator.services import comparison_raters, comparison_rating
from orchestrator.services.comparison_rating import MAX_NOTE

router = APIRouter(include_in_schema=False)
COOKIE_DAYS = 90
Secret = Annotated[str, Path(max_length=100)]
RaterId = Annotated[str, Path(max_length=64, pattern=r"^rater-[0-9a-z]+$")]


def _cookie_name(request: Request) -> str:
    return f"{cookie_name(request)}-rater"


def _cookie(request: Request) -> str:
    """The secret in the browser's cookie. A request that is not a read must have an Origin, which was checked."""
    if request.method not in {"GET", "HEAD"} and "origin" not in request.headers:
        return ""
    return request.cookies.get(_cookie_name(request), "")


@router.get("/rate/open/{secret}")
def invitation(request: Request, server: ServerDep, secret: Secret) -> Response:
    """A page with a button. The link is not used by looking at it, as programs that preview messages do."""
    try:
        rater = comparison_raters.look_up_link(server.ctx, secret)
    except TrainhopError as error:
        return _refused(request, error)
    if rater.opened_at is not None:
        return _refused(request, ConflictError(comparison_raters.USED), back=f"/rate/{rater.id}")
    return page(request, "rate_open.html", None, rater=rater.name, path=f"/rate/open/{secret}")


@router.post("/rate/open/{secret}")
def open_link(request: Request, server: ServerDep, secret: Secret) -> Response:
    """Use the link, and give this browser the cookie, which is sent only to the rater's page."""
    try:
        rater, cookie = comparison_raters.open_link(server.ctx, secret)
    except TrainhopError as error:
        return _refused(request, error)
    answer = RedirectResponse(f"/rate/{rater.id}", 303)
    answer.set_cookie(
        _cookie_name(request),
        cookie,
        max_age=COOKIE_DAYS * 86_400,
        path=f"/rate/{rater.id}",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or (server.app.settings.public_url or "").startswith("https:"),
    )
    return answer


@router.get("/rate/{rater_id}")
def desk(request: Request, server: ServerDep, rater_id: RaterId) -> Response:
    """The next prompt with its two answers."""
    try:
        found = comparison_rating.desk(server.ctx, rater_id, _cookie(request))
    except TrainhopError as error:
        return _refused(request, error)
    return page(request, "rate.html", None, found=found, path=f"/rate/{rater_id}", max_note=MAX_NOTE)


@router.post("/rate/{rater_id}")
def vote(
    request: Request,
    server: ServerDep,
    rater_id: RaterId,
    screen: Annotated[str, Form(max_length=64)],
    choice: Annotated[Choice, Form()],
    note: Annotated[str, Form(max_length=2 * MAX_NOTE)] = "",
) -> Response:
    """Vote, and go to the next prompt. A browser sends each line break of a note as two characters."""
    text = note.replace("\r\n", "\n")
    try:
        comparison_rating.give(server.ctx, rater_id, _cookie(request), screen=screen, choice=choice, note=text)
    except TrainhopError as error:
        return _refused(request, error, back=f"/rate/{rater_id}")
    return RedirectResponse(f"/rate/{rater_id}", 303)


def _refused(request: Request, error: TrainhopError, back: str = "") -> Response:
    status = 404 if isinstance(error, NotFoundError) else 409
    return page(request, "rate_refused.html", None, status=status, detail=str(error), back=back)
