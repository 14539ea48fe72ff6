"""Uploads one file through a resumable session: a URL that accepts byte ranges and remembers its progress.

The protocol is Google Drive's. `PUT` with `Content-Range: bytes a-b/N` returns 308 and a `Range` until the last chunk,
then the finished file's resource. `bytes */N` asks for the progress. Worker and server both use this module.

SessionError
├── SessionAway    no reply, or a temporary error: the session can be resumed
└── SessionGone    the session accepts no more bytes, another one may
    └── SessionFull    the store has no space left
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from worker.shared.certificates import certificates
from worker.shared.loopback import is_loopback

GRANULE_BYTES = 256 << 10
"""Every chunk but the last is a multiple of this size."""

CHUNK_BYTES = 64 * GRANULE_BYTES
TIMEOUT_S = 120.0
MAX_RETRY_AFTER_S = 60.0
RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
SLOW_DOWN = frozenset({"userRateLimitExceeded", "rateLimitExceeded", "sharingRateLimitExceeded"})
FULL = frozenset({"storageQuotaExceeded", "quotaExceeded", "teamDriveFileLimitExceeded"})


class SessionError(Exception):
    """The file was not uploaded."""


class SessionAway(SessionError):
    """There was no usable reply within the allowed attempts."""


class SessionGone(SessionError):
    """The session has ended, is unknown, or access is denied."""


class SessionFull(SessionGone):
    """The store has no space for the file."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """`attempts` in a row without progress, with jittered pauses that double from `first_s` to `longest_s`."""

    attempts: int = 12
    first_s: float = 0.5
    longest_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int, asked_s: float = 0.0) -> None:
        """Wait before the next attempt. The server may ask for a longer pause."""
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
    """Upload the file and return the store's description of it. Sending a finished file again returns the same.

    `headers` is called for every request, because a credential may expire during the upload. Raises a `SessionError` or
    `OSError`.
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
                response = client.put(url, content=body, headers={**headers(), "Content-Range": f"bytes {span}"})
                if (finished := _resource(response)) is not None:
                    return finished
                if response.status_code == 308:
                    before, at, was_query, ask = at, _received(response), ask, False
                    failures = 0 if at > before else failures
                    if at > before or was_query:
                        continue
                else:
                    wait, problem = _later(response)
            except httpx.HTTPError as error:
                problem = type(error).__name__
            failures += 1
            if failures >= patience.attempts:
                raise SessionAway(f"the upload stopped at {at} of {size} bytes: {problem}")
            patience.pause(failures, wait)
            ask = True


def probe(url: str, patience: Patience | None = None) -> bool:
    """Whether the session accepts bytes from a client that has only its URL."""
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
    local = is_loopback(url)
    return httpx.Client(timeout=TIMEOUT_S, trust_env=not local, follow_redirects=False, verify=certificates())


def _chunk(file: BinaryIO, at: int, size: int, chunk_bytes: int) -> tuple[bytes, str]:
    file.seek(at)
    body = file.read(min(chunk_bytes, size - at))
    return body, f"{at}-{at + len(body) - 1}/{size}" if body else f"*/{size}"


def _received(response: httpx.Response) -> int:
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0


def _resource(response: httpx.Response) -> dict[str, Any] | None:
    """The finished file's description. None if the session has not finished."""
    if not response.is_success:
        return None
    with contextlib.suppress(ValueError):
        found = response.json()
        if isinstance(found, dict) and "id" in found:
            return found
    return None


def _later(response: httpx.Response) -> tuple[float, str]:
    """Seconds to wait, and the reason, after a temporary error. Raises `SessionGone` after a permanent one."""
    reason = reason_of(response)
    problem = f"HTTP {response.status_code} {reason}".rstrip()
    if response.status_code == 403 and reason in FULL:
        raise SessionFull(f"no space is left in the store ({reason})")
    if response.is_success or response.status_code in RETRY or (response.status_code == 403 and reason in SLOW_DOWN):
        retry_after = response.headers.get("retry-after", "")
        return (float(retry_after) if retry_after.isdecimal() else 0.0), problem
    raise SessionGone(f"the upload session has expired: {problem}")


def reason_of(response: httpx.Response) -> str:
    """Google's reason in an error reply, which is one word, or "" if there is none."""
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        reason = str(response.json()["error"]["errors"][0]["reason"])
        return reason if re.fullmatch(r"[A-Za-z]{1,64}", reason) else ""
    return ""
