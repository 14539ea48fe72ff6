"""Into the dashboard and out of it: one-time links, the cookie, and the page for those without one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from orchestrator.entrypoints.dashboard.render import page
from orchestrator.entrypoints.http.auth import cookie_name, cookie_token
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.logins import SESSION_DAYS

router = APIRouter(include_in_schema=False)
api = APIRouter(tags=["people"], responses=PROBLEMS)


class LoginLink(BaseModel):
    """A link that opens the dashboard once, within an hour."""

    url: str


def browser(agent: str) -> str:
    """What a browser calls itself, as the name of its token: "browser, Firefox on Linux"."""
    kinds = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
    systems = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "CrOS", "Linux")
    kind = next((name for mark, name in kinds if f"{mark}/" in agent), "")
    system = next((name for name in systems if name in agent), "")
    known = " on ".join(word for word in (kind, system) if word)
    return f"browser, {known}" if known else "browser"


@api.post(
    "/login-links", status_code=201, operation_id="add_login_link", summary="Make a one-time link to the dashboard"
)
def add_login_link(server: ServerDep, me: CurrentUser) -> LoginLink:
    """The link logs one browser in as you; it works once, and for an hour."""
    return LoginLink(
        url=(server.app.settings.public_url or server.ctx.server_url()).rstrip("/") + server.logins.link(me)
    )


@router.get("/login/{code}")
def login(request: Request, server: ServerDep, code: str) -> Response:
    """Trade the code for a cookie.

    Not a redirect: a browser that follows a link from another site sends no strict cookie along its redirects.
    """
    secret = server.logins.use(code, browser(request.headers.get("user-agent", "")))
    if secret is None:
        return page(request, "login.html", None, status=401, used=True, server_url=server.ctx.server_url())
    answer = page(request, "welcome.html", None)
    answer.set_cookie(
        cookie_name(request),
        secret,
        max_age=round(SESSION_DAYS * 86_400),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or (server.app.settings.public_url or "").startswith("https:"),
    )
    return answer


@router.post("/logout")
def logout(request: Request, server: ServerDep) -> Response:
    """Make the cookie useless here, and take it away there."""
    secret = cookie_token(request)
    if secret:
        with server.ctx.uow() as tx:
            token = tx.token(server.ctx.tokens.hash(secret))
            if token is not None:
                tx.delete_token(token.id)
        server.auth.forget()
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
    return answer
