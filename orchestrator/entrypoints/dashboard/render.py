"""Templates to answers: escaping always on, words for times and sizes, compression, and who is looking."""

from __future__ import annotations

import gzip
import math
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException

from orchestrator.entrypoints.cli.output import clean, seconds, size
from orchestrator.entrypoints.dashboard.assets import SMALLEST_TO_COMPRESS, accepts_gzip, address
from orchestrator.entrypoints.http.auth import bearer_token, cookie_token
from orchestrator.services.jobs import Actor

TEMPLATES = Path(__file__).parent.parent / "templates"


class LoginNeeded(HTTPException):
    """Nobody we know is looking."""

    def __init__(self) -> None:
        super().__init__(401, "log in first")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals |= {"address": address, "ago": ago, "left": left, "icon": icon}
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
    """An age that the page itself keeps counting."""
    if at is None:
        return Markup("–")
    words = seconds(now - at)
    return Markup('<time class="age" data-at="{:.1f}" title="{}">{}</time>').format(at, moment(at), words)


def left(until: float | None, now: float) -> Markup:
    """A remaining time that the page itself keeps counting down."""
    if until is None:
        return Markup("–")
    words = seconds(max(0.0, until - now))
    return Markup('<time class="age" data-until="{:.1f}" title="{}">{}</time>').format(until, moment(until), words)


def moment(at: float | None) -> str:
    """A time in UTC, as it says."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if at is not None else "–"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with as many digits as a person reads: 0.7912, 4.1 k, 2e-05."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.1f} k"
    return f"{value:.{digits}g}" if abs(value) < 1e3 else f"{value:.0f}"


def many(count: int, word: str) -> str:
    """So many of something: 1 row, 2 rows."""
    return f"{count} {word}{'' if count == 1 else 's'}"


@cache
def icon(name: str) -> Markup:
    """A drawing from the sheet, for the eye only."""
    return Markup('<svg class="icon" aria-hidden="true"><use href="{}#{}"/></svg>').format(address("icons.svg"), name)


async def viewer(request: Request) -> Actor:
    """Who looks at a page."""
    token = bearer_token(request) or cookie_token(request)
    found = await request.app.state.server.auth.actor(token) if token else None
    if found is None:
        raise LoginNeeded
    return found


Viewer = Annotated[Actor, Depends(viewer)]


def fragment(template: str, **values: Any) -> str:
    """A piece of a page."""
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
    """A whole page for somebody."""
    now = request.app.state.server.ctx.clock.now()
    text = fragment(template, me=me, now=now, here=request.url.path, **values)
    return compressed(request, text.encode(), "text/html; charset=utf-8", status=status, headers=headers)


def piece(template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any) -> Response:
    """A piece of a page as an answer."""
    return HTMLResponse(fragment(template, **values), status, headers={"Cache-Control": "no-store", **(headers or {})})


def compressed(
    request: Request, data: bytes, media_type: str, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer that belongs to one person and is sent small."""
    mine = {"Cache-Control": "private, no-store", "Vary": "Accept-Encoding, Cookie"} | (headers or {})
    if len(data) >= SMALLEST_TO_COMPRESS and accepts_gzip(request):
        mine["Content-Encoding"] = "gzip"
        data = gzip.compress(data, 5, mtime=0)
    return Response(data, status, headers=mine, media_type=media_type)


def by_script(request: Request) -> bool:
    """Whether htmx asks, and so wants a piece instead of a page."""
    return request.headers.get("hx-request") == "true"
