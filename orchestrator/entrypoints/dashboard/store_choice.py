"""Where checkpoints are kept: the form of each store, and a sign-in by redirect or by pasting the address."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.entrypoints.dashboard import settings_form, setup
from orchestrator.entrypoints.dashboard.render import LoginNeeded, Viewer, page, viewer
from orchestrator.entrypoints.http.auth import bearer_token, cookie_token
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.ports.stores import NOWHERE
from orchestrator.services import access, stores
from worker.shared.loopback import HOSTS

router = APIRouter(include_in_schema=False)

SIGNED_IN = "/stores/signed-in"


@router.post("/stores/sign-in")
async def paste(request: Request, server: ServerDep, me: Viewer) -> Response:
    """Finish a sign-in with the address that the person has pasted."""
    form = await setup.sent(request)
    return await run_in_threadpool(_finish, request, server, me, form.get("answer", "").strip())


@router.get(SIGNED_IN)
async def redirected(request: Request, server: ServerDep, again: Annotated[str, Query(max_length=1)] = "") -> Response:
    """Finish a sign-in. The browser comes from the service's page, and then it sends no strict cookie.

    So this address is opened once more, from a page of this server.
    """
    if not (cookie_token(request) or bearer_token(request)):
        if again:
            raise LoginNeeded
        return page(request, "store_signed_in.html", None, there=f"{SIGNED_IN}?{request.url.query}&again=1")
    me = await viewer(request)
    return await run_in_threadpool(_finish, request, server, me, f"{SIGNED_IN}?{request.url.query}")


def _finish(request: Request, server: Server, me: Actor, answer: str) -> Response:
    access.require_admin(me)
    query = parse_qs(urlsplit(answer).query or answer)
    server.sign_ins.finish(_session(request, server), query.get("state", [""])[0], answer)
    return RedirectResponse("/setup", 303)


def _session(request: Request, server: Server) -> str:
    return server.ctx.tokens.hash(cookie_token(request) or bearer_token(request) or "")


@router.post("/stores/{name}")
async def use(request: Request, server: ServerDep, me: Viewer, name: str) -> Response:
    """Use a store for new files, or show the page of its sign-in."""
    access.require_admin(me)
    form = await setup.sent(request)
    return await run_in_threadpool(_use, request, server, me, name, form)


def _use(request: Request, server: Server, me: Actor, name: str, form: dict[str, str]) -> Response:
    try:
        kind = stores.kind(server.ctx, name)
        options = settings_form.read(kind.options, form)
        client = form.get("client") or form.get("client_text")
        if kind.sign_in is not None and (client or not (form.get("credentials") or form.get("again"))):
            return _begin(request, server, me, name, client or "", options)
        stores.use_store(server.ctx, name, form.get("credentials"), options)
    except TrainhopError as error:
        return setup.path(request, server, me, problem=str(error), status=422)
    return RedirectResponse("/setup", 303)


def _begin(request: Request, server: Server, me: Actor, name: str, client: str, options: dict[str, str]) -> Response:
    if not client:
        raise InvalidError("Choose the file of your OAuth client, or paste its content.")
    returns = request.url.hostname in HOSTS
    redirect = f"http://{request.url.netloc}{SIGNED_IN}" if returns else NOWHERE
    address = server.sign_ins.begin(_session(request, server), name, client, options, redirect)
    title = stores.kind(server.ctx, name).texts.title or name
    return page(request, "store_sign_in.html", me, there=address, returns=returns, title=title)


@router.get("/stores/sign-in")
@router.get("/stores/{name}")
def back() -> Response:
    """The path, for a browser that reloads the address of a form."""
    return RedirectResponse("/setup", 303)
