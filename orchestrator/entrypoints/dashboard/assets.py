"""Static files, read and compressed once. A URL with the file's hash can be cached forever."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from orchestrator.entrypoints.http.files import has_current

FOLDER = Path(__file__).parent.parent / "static"
SMALLEST_TO_COMPRESS = 512
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file: media type, raw and compressed bytes, and a prefix of its hash."""

    media_type: str
    plain: bytes
    compressed: bytes
    tag: str


@cache
def assets() -> dict[str, Asset]:
    """All files that are served, by their name below `static/`."""
    files = (p for p in sorted(FOLDER.rglob("*")) if p.suffix in _TYPES)
    return {str(p.relative_to(FOLDER)): _asset(p) for p in files}


def _asset(path: Path) -> Asset:
    data = path.read_bytes()
    if path.parent == FOLDER and path.suffix in (".css", ".js"):
        data = slim(data.decode()).encode()
    return Asset(
        media_type=f"{_TYPES[path.suffix]}; charset=utf-8",
        plain=data,
        compressed=gzip.compress(data, 9, mtime=0),
        tag=hashlib.sha256(data).hexdigest()[:12],
    )


def slim(text: str) -> str:
    """One of our own style sheets or scripts without indentation and lines of comments, a tenth of it as it is sent.

    None of them has a text of several lines, in which that would change something.
    """
    stripped = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in stripped if line and not line.startswith("//")) + "\n"


def address(name: str) -> str:
    """The URL of a static file."""
    return f"/static/{name}?v={assets()[name].tag}"


def accepts_gzip(request: Request) -> bool:
    """Whether the browser accepts gzip."""
    return "gzip" in request.headers.get("accept-encoding", "")


@router.get("/static/{name:path}")
def static(request: Request, name: str) -> Response:
    """Serve a static file."""
    found = assets().get(name)
    if found is None:
        raise HTTPException(404, f"There is no file {name}.")
    current = request.query_params.get("v") == found.tag
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if current else "no-cache",
        "ETag": f'"{found.tag}"',
        "Vary": "Accept-Encoding",
    }
    if has_current(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if accepts_gzip(request):
        return Response(found.compressed, media_type=found.media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(found.plain, media_type=found.media_type, headers=headers)


@router.get("/favicon.ico")
@router.get("/favicon.svg")
def favicon(state: str = "idle", percent: float = 0.0) -> Response:
    """A ring with the job's progress, or the logo without a job."""
    colour = {"running": "#2f6fde", "failed": "#c93a3a", "succeeded": "#1d8a52", "paused": "#a86a00"}.get(
        state, "#5b6b82"
    )
    share = min(max(percent, 0.0), 100.0)
    ring = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="12" fill="none" '
        f'stroke="{colour}" stroke-opacity=".28" stroke-width="7"/><circle cx="16" cy="16" r="12" fill="none" '
        f'stroke="{colour}" stroke-width="7" pathLength="100" stroke-dasharray="{share:.1f} 100" '
        f'transform="rotate(-90 16 16)"/></svg>'
    )
    whole = ring if state != "idle" else assets()["sign.svg"].plain
    return Response(whole, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})
