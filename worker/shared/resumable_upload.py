"""One file through a resumable upload session: a URL that takes byte ranges and remembers how far it got.

The wire is Google Drive's: `PUT` with `Content-Range: bytes a-b/N` answers 308 and a `Range` until the last chunk, then the
finished file's resource; `bytes */N` asks how far it got. Worker and server both send with this.

SessionError
├── SessionAway    no usable answer, or one that means 'later': the session goes on from where it stands
└── SessionGone    the session takes no more bytes; another one may
    └── SessionFull    no space is left where it leads
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx

GRANULE_BYTES = 256 << 10
"""Every chunk but the last is a multiple of this."""

CHUNK_BYTES = 64 * GRANULE_BYTES
TIMEOUT_S = 120.0
MAX_RETRY_AFTER_S = 60.0
RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
SLOW_DOWN = frozenset({"userRateLimitExceeded", "rateLimitExceeded", "sharingRateLimitExceeded"})
FULL = frozenset({"storageQuotaExceeded", "quotaExceeded", "teamDriveFileLimitExceeded"})


class SessionError(Exception):
    """The file did not arrive."""


class SessionAway(SessionError):
    """Nothing usable came back for as long as patience lasted."""


class SessionGone(SessionError):
    """The session is over, unknown, or not for us."""


class SessionFull(SessionGone):
    """There is no space for the file."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """`attempts` in a row without progress, with pauses that double from `first_s` to `longest_s`, jittered."""

    attempts: int = 12
    first_s: float = 0.5
    longest_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int, asked_s: float = 0.0) -> None:
        """Wait before the next attempt; longer if the other side asked for that."""
        usual = min(self.longest_s, self.first_s * 2 ** (failures - 1))
        self.sleep(max(usual * random.uniform(0.5, 1.0), min(asked_s, MAX_RETRY_AFTER_S)))  # noqa: S311


NO_HEADERS: Callable[[], Mapping[str, str]] = dict


def send(
    url: str,
    source: Path,
    *,
    headers: Callable[[], Mapping[str, str]] = NO_HEADERS,
    patience: Patience | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, Any]:
    """Send the file and return the store's own description of it; sending a finished one again does the same.

    `headers` is asked for every request, because a credential may run out on the way. Raises a `SessionError` or `OSError`.
    """
    patience = patience or Patience()
    failures, at = 0, 0
    ask = False
    with source.open("rb") as file, _client(url) as client:
        size = source.stat().st_size
        while True:
            wait, problem = 0.0, "no progress"
            try:
                body, span = (b"", f"*/{size}") if ask else _chunk(file, at, size, chunk_bytes)
                answer = client.put(url, content=body, headers={**headers(), "Content-Range": f"bytes {span}"})
                if (finished := _resource(answer)) is not None:
                    return finished
                if answer.status_code == 308:
                    before, at, asked, ask = at, _received(answer), ask, False
                    failures = 0 if at > before else failures
                    if at > before or asked:
                        continue
                else:
                    wait, problem = _later(answer)
            except httpx.HTTPError as error:
                problem = type(error).__name__
            failures += 1
            if failures >= patience.attempts:
                raise SessionAway(f"the upload stands at {at} of {size} bytes: {problem}")
            patience.pause(failures, wait)
            ask = True


def probe(url: str, patience: Patience | None = None) -> bool:
    """Whether the session takes bytes from somebody who has nothing but its URL."""
    patience = patience or Patience(attempts=4)
    with _client(url) as client:
        for failures in range(1, patience.attempts + 1):
            with contextlib.suppress(httpx.HTTPError):
                status = client.put(url, headers={"Content-Range": "bytes */*"}).status_code
                if status in (200, 201, 308) or status not in RETRY:
                    return status in (200, 201, 308)
            patience.pause(failures)
    return False


def _client(url: str) -> httpx.Client:
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return httpx.Client(timeout=TIMEOUT_S, trust_env=not local, follow_redirects=False, verify=_certificates())


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: that takes as long as a small upload."""
    return httpx.create_ssl_context()


def _chunk(file: BinaryIO, at: int, size: int, chunk_bytes: int) -> tuple[bytes, str]:
    file.seek(at)
    body = file.read(min(chunk_bytes, size - at))
    return body, f"{at}-{at + len(body) - 1}/{size}" if body else f"*/{size}"


def _received(answer: httpx.Response) -> int:
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0


def _resource(answer: httpx.Response) -> dict[str, Any] | None:
    """The finished file, or None if this is not the answer of a finished session."""
    if not answer.is_success:
        return None
    with contextlib.suppress(ValueError):
        found = answer.json()
        if isinstance(found, dict) and "id" in found:
            return found
    return None


def _later(answer: httpx.Response) -> tuple[float, str]:
    """How long to wait and why, if this answer means 'later'; raises `SessionGone` if it means 'never'."""
    reason = reason_of(answer)
    words = f"HTTP {answer.status_code} {reason}".rstrip()
    if answer.status_code == 403 and reason in FULL:
        raise SessionFull(f"no space is left in the store ({reason})")
    if answer.is_success or answer.status_code in RETRY or (answer.status_code == 403 and reason in SLOW_DOWN):
        asked = answer.headers.get("retry-after", "")
        return (float(asked) if asked.isdecimal() else 0.0), words
    raise SessionGone(f"the upload session is of no use any more: {words}")


def reason_of(answer: httpx.Response) -> str:
    """Why Google says that it refuses, or "" if that is not what this is."""
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        return str(answer.json()["error"]["errors"][0]["reason"])
    return ""
