"""The path from an empty server to the first job: connect an account, choose a store, a model, and data.

No progress is stored. Each step looks at what is on the server, so the path can be left and taken up again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from orchestrator.domain.accounts import Account, Actor, Role
from orchestrator.domain.errors import TrainhopError
from orchestrator.entrypoints.dashboard import job_form, settings_form
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.ports.stores import StoreError
from orchestrator.services import accounts, capacity, model_search, stores
from orchestrator.services.providers import ProviderState, list_providers

router = APIRouter(include_in_schema=False)

MAX_FORM_BYTES = 1 << 20
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ConnectForm:
    """The form for an account at one provider."""

    provider: ProviderState
    fields: list[settings_form.SettingField]


@dataclass(frozen=True, kw_only=True)
class StoreForm:
    """The form for one kind of store. With `signs_in` an OAuth client is entered, otherwise credentials."""

    name: str
    title: str
    texts: Any
    current: bool
    set_up: bool
    signs_in: bool
    fields: list[settings_form.SettingField]


def connect_forms(server: Server, me: Actor, mine: list[Account]) -> list[ConnectForm]:
    """A form for each provider of personal accounts at which the viewer has none with credentials, free ones first."""
    taken = {a.provider for a in mine if a.member_id == me.member_id and a.credentials}
    lacking = [s for s in list_providers(server.ctx) if s.personal and not s.problem and s.name not in taken]
    drivers = {state.name: server.ctx.providers.get(state.name) for state in lacking}
    lacking.sort(key=lambda state: not drivers[state.name].capabilities.free_of_charge)
    return [ConnectForm(provider=s, fields=settings_form.fields(drivers[s.name].account_settings)) for s in lacking]


def store_forms(server: Server, me: Actor) -> list[StoreForm]:
    """A form for each installed kind of store. Only admins choose one."""
    if me.role is not Role.ADMIN:
        return []
    current = server.ctx.stores.current().name
    return [
        StoreForm(
            name=kind.name,
            title=kind.texts.title or kind.name,
            texts=kind.texts,
            current=kind.name == current,
            set_up=stores.is_set_up(server.ctx, kind.name),
            signs_in=kind.sign_in is not None,
            fields=settings_form.fields(kind.options),
        )
        for kind in stores.kinds(server.ctx)
    ]


@router.get("/setup")
def setup(
    request: Request, server: ServerDep, me: Viewer, search: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """The path, and the models that a search has found."""
    return path(request, server, me, search=search.strip())


def path(
    request: Request,
    server: Server,
    me: Actor,
    *,
    search: str = "",
    said: str = "",
    problem: str = "",
    template: str = "setup.html",
    status: int = 200,
    **more: Any,
) -> Response:
    """The page with the four steps, each with what is already there."""
    return page(
        request,
        template,
        me,
        status=status,
        **_steps(server, me),
        **_found(server, me, search),
        said=said,
        problem=problem,
        **more,
    )


def _steps(server: Server, me: Actor) -> Row:
    visible = accounts.list_accounts(server.ctx, me)
    usable = [a for a in visible if a.member_id in (None, me.member_id)]
    places = {place.account_id: place for place in capacity.list_capacity(server.ctx, usable)}
    store = server.ctx.stores.current()
    known = server.queries.datasets(member_id=me.member_id, limit=1, before=None, rows_only=True).items
    return {
        "machines": [(account, places[account.id]) for account in usable],
        "connected": [a for a in usable if a.member_id and a.credentials and a.consented_at and not a.problem],
        "connect": connect_forms(server, me, usable),
        "store": store_now(server),
        "store_forms": store_forms(server, me),
        "store_lacks": _lacks(server, store.name, usable),
        "data": known,
        "presets": job_form.PRESETS,
    }


def store_now(server: Server) -> Row:
    """The store in use, with its space."""
    store = server.ctx.stores.current()
    title = next((k.texts.title for k in stores.kinds(server.ctx) if k.name == store.name), "") or store.name
    try:
        usage = store.usage()
    except StoreError as error:
        return {"name": store.name, "title": title, "problem": str(error), "used": None, "free": None}
    return {"name": store.name, "title": title, "problem": "", "used": usage.used, "free": usage.free}


def _lacks(server: Server, store: str, usable: list[Account]) -> list[str]:
    """Accounts whose machines can write into this computer's folder only when a session ends."""
    if store != server.ctx.stores.local().name:
        return []
    known = {entry.name for entry in server.ctx.providers.entries() if entry.provider is not None}
    return [
        a.name for a in usable if a.credentials and a.provider in known and capacity.is_offline(server.ctx, a.provider)
    ]


def _found(server: Server, me: Actor, words: str) -> Row:
    if not words:
        return {"search": "", "models": [], "search_problem": ""}
    try:
        found = model_search.search(server.ctx, me, words)
    except TrainhopError as error:
        return {"search": words, "models": [], "search_problem": str(error)}
    return {"search": words, "models": found, "search_problem": ""}


@router.post("/setup")
async def connect(request: Request, server: ServerDep, me: Viewer) -> Response:
    """Connect the viewer's own account, which is their consent. The credentials are tried first."""
    form = await sent(request)
    try:
        words = await run_in_threadpool(connect_account, server, me, form)
    except TrainhopError as error:
        return await run_in_threadpool(path, request, server, me, problem=str(error), status=422)
    return await run_in_threadpool(path, request, server, me, said=words)


def connect_account(server: Server, me: Actor, form: Mapping[str, str]) -> str:
    """Store the account of the form. Returns what the provider says of it. Raises `TrainhopError`."""
    provider = form.get("provider", "")
    driver = accounts.driver_of(server.ctx, provider)
    account = accounts.add_account(
        server.ctx,
        me,
        provider=provider,
        name=None,
        owner=None,
        config=settings_form.read(driver.account_settings, form),
        credentials=form.get("credentials", ""),
    )
    return f"{account.name}: {accounts.check(server.ctx, me, account.id)[1]}"


async def sent(request: Request) -> dict[str, str]:
    """The texts of a form. Small files in it are read as text."""
    async with request.form(max_files=1, max_part_size=MAX_FORM_BYTES) as form:
        found: dict[str, str] = {}
        for key, value in form.items():
            text = value if isinstance(value, str) else (await value.read(MAX_FORM_BYTES)).decode(errors="replace")
            if text.strip():
                found[key] = text
        return found
