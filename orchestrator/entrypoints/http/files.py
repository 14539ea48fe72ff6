"""A stored file as an answer: whole, or from where an earlier answer was cut off (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from orchestrator.ports.providers import Store

OCTETS = "application/octet-stream"
_SPAN = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")
BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The one range of bytes that was asked for."},
    416: {"description": "The file ends before that range begins."},
}


def stored(
    request: Request, store: Store, key: str, *, size: int, sha256: str, media_type: str, name: str | None = None
) -> Response:
    """The object, or the single range of it that is asked for; raises `ObjectMissing` before anything is sent.

    Several ranges, and what is no range, get the whole file, as a range does whose `If-Range` names another one.
    """
    etag = f'"{sha256}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag}
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
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


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """Its first byte and the one after its last; None if the whole file is the answer."""
    found = _SPAN.fullmatch(asked.strip())
    if found is None or (found[1] and found[2] and int(found[2]) < int(found[1])):
        return None
    start = int(found[1]) if found[1] else max(0, size - int(found[3]))
    if start >= size:
        raise HTTPException(416, f"the file has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, min(size, int(found[2]) + 1) if found[2] else size


def _first(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """So many bytes of them. The first chunk is read at once: a missing object must be a 404, not a broken download."""
    first = next(chunks, b"")

    def all_chunks() -> Iterator[bytes]:
        left, chunk = count, first
        while chunk and left:
            yield chunk[:left]
            left -= len(chunk[:left])
            chunk = next(chunks, b"") if left else b""

    return all_chunks()
