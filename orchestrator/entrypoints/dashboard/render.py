"""Render templates to responses: escaping, time and size formats, compression, and the current viewer."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import TrainhopError
from orchestrator.entrypoints.cli.output import clean, seconds, size
from orchestrator.entrypoints.dashboard.assets import SMALLEST_TO_COMPRESS, accepts_gzip, address
from orchestrator.entrypoints.http.auth import bearer_token, cookie_token, refuse_viewer
from worker.shared.counted_words import many

TEMPLATES = Path(__file__).parent.parent / "templates"


class LoginNeeded(HTTPException):
    """The request has no valid login."""

    def __init__(self) -> None:
        super().__init__(401, "You are not logged in. Log in first.")


class TableRoles(Extension):
    """Gives the parts of every table their ARIA roles.

    On a phone a table's rows are shown as cards, and browsers take a table that is not displayed as one for plain text.
    """

    _TAGS = re.compile(r'<(table|thead|tbody|tr|td|th scope="(?:row|col)")(?=[ >])')
    _ROLES: ClassVar = {
        "table": "table",
        "thead": "rowgroup",
        "tbody": "rowgroup",
        "tr": "row",
        "td": "cell",
        'th scope="row"': "rowheader",
        'th scope="col"': "columnheader",
    }

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """The template with the roles."""
        return self._TAGS.sub(lambda tag: f'{tag[0]} role="{self._ROLES[tag[1]]}"', source)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        extensions=[TableRoles],
    )
    made.globals |= {"address": address, "ago": ago, "left": left, "icon": icon, "hour": hour, "short": short}
    made.filters |= {
        "plain": lambda text: clean(text, one_line=False),
        "line": clean,
        "seconds": seconds,
        "size": size,
        "number": number,
        "moment": moment,
        "many": many,
    }
    return made


def ago(at: float | None, now: float) -> Markup:
    """An age that the page keeps updating."""
    if at is None:
        return Markup("–")
    words = seconds(now - at)
    return Markup('<time class="age" data-at="{:.1f}" title="{}">{}</time>').format(at, moment(at), words)


def left(until: float | None, now: float) -> Markup:
    """A remaining time that the page keeps counting down."""
    if until is None:
        return Markup("–")
    words = seconds(max(0.0, until - now))
    return Markup('<time class="age" data-until="{:.1f}" title="{}">{}</time>').format(until, moment(until), words)


def moment(at: float | None) -> str:
    """A time in UTC, or a dash."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if at is not None else "–"


def hour(at: float, now: float | None = None) -> Markup:
    """A time of day in UTC, with its date for those who ask. With `now`, a time of another day shows its date."""
    when = datetime.fromtimestamp(at, UTC)
    is_today = now is None or when.date() == datetime.fromtimestamp(now, UTC).date()
    words = f"{when:%H:%M} UTC" if is_today else f"{when.day} {when:%B, %H:%M} UTC"
    return Markup('<time title="{}">{}</time>').format(moment(at), words)


def short(text: str, most: int = 60) -> Markup:
    """One line of a text. A longer one is cut and has the whole text as its title."""
    words = clean(text)
    if len(words) <= most:
        return escape(words)
    return Markup('<span title="{}">{}…</span>').format(words, words[: most - 1].rstrip())


def number(value: float | None, digits: int = 3) -> str:
    """A number with few digits: 0.7912, 4.1 k, 2e-05."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.1f} k"
    return f"{value:.{digits}g}" if abs(value) < 1e3 else f"{value:.0f}"


@cache
def icon(name: str) -> Markup:
    """An icon, hidden from screen readers."""
    return Markup('<svg class="icon" aria-hidden="true"><use href="{}#{}"/></svg>').format(address("icons.svg"), name)


async def viewer(request: Request) -> Actor:
    """The viewer of a page."""
    token = bearer_token(request) or cookie_token(request)
    found = await request.app.state.server.auth.actor(token) if token else None
    if found is None:
        raise LoginNeeded
    refuse_viewer(request, found)
    return found


Viewer = Annotated[Actor, Depends(viewer)]


def fragment(template: str, **values: Any) -> str:
    """Render a page fragment."""
    return _environment().get_template(template).render(**values)


def page(
    request: Request,
    template: str,
    me: Actor | None,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **values: Any,
) -> Response:
    """A full page as a response."""
    now = request.app.state.server.ctx.clock.now()
    text = fragment(template, me=me, now=now, here=request.url.path, **values)
    return compressed(request, text.encode(), "text/html; charset=utf-8", status=status, headers=headers)


def piece(template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any) -> Response:
    """A page fragment as a response."""
    return HTMLResponse(fragment(template, **values), status, headers={"Cache-Control": "no-store", **(headers or {})})


def compressed(
    request: Request, data: bytes, media_type: str, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A private, compressed response."""
    mine = {"Cache-Control": "private, no-store", "Vary": "Accept-Encoding, Cookie"} | (headers or {})
    if len(data) >= SMALLEST_TO_COMPRESS and accepts_gzip(request):
        mine["Content-Encoding"] = "gzip"
        data = gzip.compress(data, 5, mtime=0)
    return Response(data, status, headers=mine, media_type=media_type)


def by_script(request: Request) -> bool:
    """Whether htmx sent the request and expects a fragment."""
    return request.headers.get("hx-request") == "true"


def acted(request: Request, act: Callable[[], Any], answer: Callable[[str], Response]) -> Response:
    """Do what a form asks for. `answer` gets the problem in words, or an empty text.

    Without the script, a refusal is a page of its own.
    """
    try:
        act()
    except TrainhopError as error:
        if not by_script(request):
            raise
        return answer(str(error))
    return answer("")
