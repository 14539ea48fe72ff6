"""Login and logout of the dashboard: one-time links, the cookie, and the login page."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from orchestrator.entrypoints.dashboard.render import page
from orchestrator.entrypoints.http.auth import cookie_name, cookie_token
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.logins import BROWSER, SESSION_DAYS
from orchestrator.entrypoints.http.routes import PREFIX

router = APIRouter(include_in_schema=False)
api = APIRouter(prefix=PREFIX, tags=["people"], responses=PROBLEMS)


class LoginLink(BaseModel):
    """A link that logs in once, within an hour."""

    url: str


def browser(agent: str) -> str:
    """A token name from the User-Agent header, for example "browser, Firefox on Linux"."""
    kinds = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
    systems = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "CrOS", "Linux")
    kind = next((name for mark, name in kinds if f"{mark}/" in agent), "")
    system = next((name for name in systems if name in agent), "")
    known = " on ".join(word for word in (kind, system) if word)
    return f"{BROWSER}, {known}" if known else BROWSER


@api.post("/login-links", status_code=201, operation_id="add_login_link", summary="Create a login link")
def add_login_link(server: ServerDep, me: CurrentUser) -> LoginLink:
    """The link logs one browser in to the dashboard as you. It works once, within an hour."""
    return LoginLink(
        url=(server.app.settings.public_url or server.ctx.server_url()).rstrip("/") + server.logins.link(me)
    )


@router.get("/login/{code}")
def login(request: Request, server: ServerDep, code: str) -> Response:
    """Exchange the code for a cookie.

    This is not a redirect: a browser that follows a link from another site sends no strict cookie with redirects.
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
    """Revoke the token and delete the cookie."""
    secret = cookie_token(request)
    if secret:
        with server.ctx.uow() as tx:
            token = tx.tokens.get_by_hash(server.ctx.tokens.hash(secret))
            if token is not None:
                tx.tokens.delete(token.id)
        server.auth.forget()
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
    return answer
