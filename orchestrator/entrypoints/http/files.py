"""Serve a stored file, whole or as one byte range (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from orchestrator.ports.stores import Store

OCTETS = "application/octet-stream"
_SPAN = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")
BYTES = {"type": "string", "format": "binary"}
BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {OCTETS: {"schema": BYTES}}},
    304: {"description": "The client already has this file."},
    206: {"description": "The requested byte range."},
    416: {"description": "The range starts after the end of the file."},
}


def stored(
    request: Request, store: Store, key: str, *, size: int, sha256: str, media_type: str, name: str | None = None
) -> Response:
    """The object or the requested byte range. Raises `ObjectMissing` before the response starts.

    Several ranges, an invalid range, or an `If-Range` for another file get the whole file.
    """
    etag = f'"{sha256}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag}
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if has_current(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    if request.method == "HEAD":
        store.head(key, 1)
        return Response(media_type=media_type, headers=headers | {"Content-Length": str(size)})
    span = _span(request.headers.get("range", ""), size) if request.headers.get("if-range", etag) == etag else None
    start, end = span or (0, size)
    headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    chunks = _first(store.read(key, start), end - start)
    return StreamingResponse(chunks, 206 if span is not None else 200, headers, media_type)


def has_current(request: Request, etag: str) -> bool:
    """Whether the client already has the file with this ETag, as its `If-None-Match` says."""
    asked = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    return any(tag in ("*", etag) for tag in asked)


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """The first byte of the range and the one after its last. None for the whole file."""
    found = _SPAN.fullmatch(asked.strip())
    if found is None or (found[1] and found[2] and int(found[2]) < int(found[1])):
        return None
    start = int(found[1]) if found[1] else max(0, size - int(found[3]))
    if start >= size:
        raise HTTPException(
            416, f"The range is not valid. The file has {size} bytes.", {"Content-Range": f"bytes */{size}"}
        )
    return start, min(size, int(found[2]) + 1) if found[2] else size


def _first(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The first bytes of a stream. The first chunk is read at once, so that a missing object gives 404."""
    first = next(chunks, b"")

    def all_chunks() -> Iterator[bytes]:
        left, chunk = count, first
        while chunk and left:
            yield chunk[:left]
            left -= len(chunk[:left])
            chunk = next(chunks, b"") if left else b""

    return all_chunks()
