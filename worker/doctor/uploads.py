"""Checks whether an upload session accepts bytes from a client that has only its URL. Standard library only."""

from __future__ import annotations

import http.client
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from worker.doctor.outcome import ProbeError

CHUNK = 256 << 10
SIZES = (1, CHUNK + 1)
"""Bytes of the two files. One is sent in a single request, the other as a whole chunk and a last one."""
_TIMEOUT_S = 30.0
_DONE = (200, 201)


def uploads(addresses: Sequence[str], timeout_s: float = _TIMEOUT_S) -> tuple[str, dict[str, Any]]:
    """Send a file of each of `SIZES` to the session at its URL, without signing in."""
    single, chunked = addresses
    data: dict[str, Any] = {}
    data["one_byte"] = _put(single, b"1", 0, 1, timeout_s)
    body = os.urandom(CHUNK + 1)
    data["chunk"] = _put(chunked, body[:CHUNK], 0, CHUNK + 1, timeout_s)
    data["end"] = _put(chunked, body[CHUNK:], CHUNK, CHUNK + 1, timeout_s)
    wanted = {"one_byte": _DONE, "chunk": (308,), "end": _DONE}
    wrong = [f"{name.replace('_', ' ')}: HTTP {data[name]}" for name, fine in wanted.items() if data[name] not in fine]
    if wrong:
        raise ProbeError(f"the upload session does not accept data without a sign-in ({'; '.join(wrong)})", **data)
    return "an upload session accepts a byte, a chunk of 256 KiB and the last chunk without a sign-in", data


def _put(address: str, body: bytes, start: int, size: int, timeout_s: float) -> int:
    """The status of Drive's response."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    headers = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}", "Content-Length": str(len(body))}
    try:
        connection.request("PUT", f"{parts.path}?{parts.query}" if parts.query else parts.path, body, headers)
        answer = connection.getresponse()
        answer.read(1 << 16)
        return answer.status
    except (OSError, http.client.HTTPException) as error:
        raise ProbeError(f"the machine could not reach Google Drive ({type(error).__name__})") from error
    finally:
        connection.close()
