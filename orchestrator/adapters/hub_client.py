"""A client of the Hugging Face hub that repeats nothing: whoever pushes decides whether and when to try again.

The hub's own client repeats requests for minutes, as long as a `Retry-After` says, and one of them for ever.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import httpx

from worker.shared.certificates import certificates

TIMEOUT_S = 60.0
_CREATE = "/api/repos/create"
_CREATE_AGAIN = "another conflicting operation is in progress"


class BusyError(Exception):
    """The hub has answered that it cannot do this now, or that it failed."""

    def __init__(self, status: int, retry_after_s: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.retry_after_s = status, retry_after_s


class LostError(Exception):
    """The hub did not answer. The message is the kind of error."""


class _Client(httpx.Client):
    def send(self, request: httpx.Request, **how: Any) -> httpx.Response:
        try:
            answer = super().send(request, **how)
        except httpx.TransportError as error:
            raise LostError(type(error).__name__) from None
        if _is_busy(request, answer):
            raise BusyError(answer.status_code, _asked_to_wait(answer.headers))
        return answer


def _is_busy(request: httpx.Request, answer: httpx.Response) -> bool:
    status = answer.status_code
    if status == 409 and request.url.path == _CREATE:  # otherwise it says that the repository exists
        return _CREATE_AGAIN in answer.text
    return status in (409, 429) or status >= 500


def _asked_to_wait(headers: httpx.Headers) -> float | None:
    """Seconds, from `Retry-After` or from the reset of a rate limit that is used up."""
    found = re.fullmatch(r"(\d{1,6})", headers.get("Retry-After", "").strip())
    found = found or re.search(r"\bt=(\d{1,6})\b", headers.get("RateLimit", ""))
    return float(found[1]) if found else None


@contextmanager
def own_client() -> Generator[None]:
    """Inside the block, the hub's library sends its requests with this client."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    set_client_factory(lambda: _Client(follow_redirects=True, timeout=TIMEOUT_S, verify=certificates()))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
