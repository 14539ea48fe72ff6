"""The list of jobs: its filters, orders and columns, the jobs of a tag by their settings, and actions on several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field

from orchestrator.adapters.database.job_list import Order
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api.compared_jobs import MAX_JOBS, MIN_JOBS
from orchestrator.entrypoints.dashboard import setup
from orchestrator.entrypoints.dashboard.compare import in_words
from orchestrator.entrypoints.dashboard.render import Viewer, by_script, page, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import bulk_actions, dispatch
from orchestrator.services.job_differences import Difference, differences

router = APIRouter(include_in_schema=False)

JOBS_PER_PAGE = 25
"""On a phone each is a card, and more of them make a page too long to scroll."""
COUNTED_MOST = 1_000
MAX_SETTINGS = 6
"""Columns for the settings in which the jobs of a tag differ. The page that compares jobs shows all of them."""
COLUMNS = {
    "state": "State",
    "progress": "Progress",
    "loss": "Loss",
    "checkpoint": "Last checkpoint",
    "machine": "Machine",
    "member": "Member",
    "submitted": "Submitted",
    "tags": "Tags",
    "note": "Note",
}
INSTEAD = ("checkpoint", "machine", "submitted")
"""Columns in the place of which a tag's list has the settings, because there is no room for both."""
HIDDEN = "hidden_columns"
"""The cookie with the columns that a browser does not show. So it shows what a later version adds."""
COOKIE_S = 365 * 24 * 3600
Row = dict[str, Any]


@router.get("/")
def listing(
    request: Request,
    server: ServerDep,
    me: Viewer,
    state: JobState | None = None,
    name: Annotated[str, Query(max_length=200)] = "",
    mine: bool = False,
    tag: Annotated[str, Query(max_length=50)] = "",
    sort: Order | None = None,
    cursor: Annotated[str | None, Query(max_length=1_000)] = None,
) -> Response:
    """The list of jobs, newest first, and those of a tag best first. A user without jobs sees the welcome page."""
    now = server.ctx.clock.now()
    member_id = me.member_id if mine else me.jobs_seen
    order = sort or (Order.BEST if tag else Order.SUBMITTED)
    wanted: Row = {"member_id": member_id, "state": state, "name": name or None, "tag": tag}
    found = server.queries.jobs(now=now, limit=JOBS_PER_PAGE, before=cursor, order=order, **wanted)
    if not found.items and not (cursor or state or name or mine or tag) and found.next is None:
        return setup.path(request, server, me, template="first.html", demo=request.app.state.demo.state())
    asked = {"state": state, "name": name, "mine": "true" if mine else "", "tag": tag, "sort": sort}
    ids = [row["id"] for row in found.items]
    settings = _settings(server, ids) if tag else []
    hidden = {*request.cookies.get(HIDDEN, "").split("."), *(INSTEAD if settings else ())}
    values: Row = {
        "jobs": found.items,
        "waiting": dispatch.why_each_waits(server.ctx, ids, server.machines.places()),
        "next": found.next,
        "order": order,
        "link": _links(asked),
        "shown": [key for key in COLUMNS if key not in hidden],
        "settings": settings,
        "eval_losses": {i: server.dashboard_queries.newest(i, "eval_loss") for i in ids} if tag else {},
        "compared": ids[:MAX_JOBS] if len(ids) >= MIN_JOBS else [],
        **asked,
        "mine": mine,
    }
    if by_script(request):
        return piece("jobs_table.html", me=me, now=now, **values)
    values |= {"states": list(JobState), "columns": COLUMNS, "again": _links(asked)(cursor=cursor)}
    values["counts"] = (
        {s: server.dashboard_queries.count(s, COUNTED_MOST) for s in JobState} if member_id is None else {}
    )
    return page(request, "jobs.html", me, **values)


def _links(asked: Row) -> Callable[..., str]:
    """A function that writes the address of this list with changes. Without a cursor it is that of the first page."""

    def link(**changes: Any) -> str:
        query = urlencode({key: value for key, value in (asked | changes).items() if value})
        return f"/?{query}" if query else "/"

    return link


def _settings(server: Server, ids: list[str]) -> list[tuple[str, dict[str, str]]]:
    """The keys in which these jobs differ, each with its value in words by job."""
    specs = server.dashboard_queries.specs(ids)
    there = [job_id for job_id in ids if job_id in specs]
    found: list[Difference] = differences([specs[job_id] for job_id in there])
    return [(key, dict(zip(there, map(in_words, values), strict=True))) for key, values in found[:MAX_SETTINGS]]


@router.get("/columns")
def choose(
    me: Viewer,  # noqa: ARG001  only those who are logged in
    columns: Annotated[list[Annotated[str, Field(max_length=20)]] | None, Query(alias="column", max_length=50)] = None,
    back: Annotated[str, Query(max_length=2_000, pattern=r"^/(\?[^\s\\]*)?$")] = "/",
) -> Response:
    """Show only these columns of the list from now on, in this browser. `back` is the list's address."""
    answer = RedirectResponse(back, 303)
    hidden = ".".join(key for key in COLUMNS if key not in (columns or ()))
    answer.set_cookie(HIDDEN, hidden, max_age=COOKIE_S, httponly=True, samesite="strict")
    return answer


@router.post("/jobs")
def act(
    request: Request,
    server: ServerDep,
    me: Viewer,
    action: Annotated[bulk_actions.Action, Form()],
    jobs: Annotated[list[Annotated[str, Field(max_length=64)]] | None, Form(alias="job", max_length=1_000)] = None,
    tag: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Act on the ticked jobs, and say what happened to each."""
    outcomes = bulk_actions.act(server.ctx, me, jobs or [], action, tag.strip())
    rows = [server.queries.job(outcome.job_id, server.ctx.clock.now()) for outcome in outcomes]
    names = {row["id"]: row["name"] for row in rows if row is not None and me.may_see_jobs_of(row["member_id"])}
    return page(request, "jobs_done.html", me, outcomes=outcomes, names=names, action=action)
