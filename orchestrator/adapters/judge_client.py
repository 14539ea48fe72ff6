"""Calls OpenAI-compatible chat endpoints. What an endpoint writes is read within limits and repeated nowhere."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from orchestrator.adapters import private_networks
from orchestrator.adapters.outside_transport import InsideError, OutsideTransport
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.judges import JudgeAddress, NoReply, Remedy, Reply

TIMEOUT_S = 60.0
"""For a whole request, however slowly its answer arrives."""
CONNECT_S = 10.0
MAX_BYTES = 256 << 10
"""Of an answer, which is a few hundred bytes of JSON."""
MAX_TEXT = 2_000
"""Characters of the judge's text that are looked at."""
MAX_COUNTED = 10_000_000
"""Tokens of one request that are believed."""
INSIDE = "This address is in the server's own network. Only an admin can use it."
_NOT_COMPATIBLE = "The answer of this address is not that of an OpenAI-compatible chat endpoint."
_JSON = "application/json"


class WebJudge:
    """Implements `ports.judges.JudgeClient`. `lookup` resolves a host's addresses.

    A request to the outside is sent without a proxy to exactly the address that was checked. Redirects are not
    followed, because they would take key and answers elsewhere.
    """

    def __init__(
        self,
        lookup: private_networks.Lookup = private_networks.lookup,
        inside: private_networks.IsInside = private_networks.is_inside,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._lookup, self._inside, self._timeout_s = lookup, inside, timeout_s

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Loaded once, because it takes longer than a request."""
        return httpx.create_ssl_context()

    def check(self, url: str, *, anywhere: bool) -> str:
        parts = _split(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise _refused("Give the address without a user, a query or a fragment. The key has a field of its own.")
        is_inside = private_networks.leads_inside(parts.hostname, self._lookup, self._inside)
        if is_inside and not anywhere:
            raise _refused(INSIDE)
        if parts.scheme == "http" and not is_inside:
            raise _refused("http:// sends key and answers unprotected through the internet. Use https://.")
        return url.strip().rstrip("/").removesuffix("/chat/completions")

    def ask(self, where: JudgeAddress, messages: Sequence[dict[str, str]], max_tokens: int) -> Reply:
        body = {"model": where.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        headers = {"Accept": _JSON, "Accept-Encoding": "identity", "User-Agent": "trainhop"}
        if where.key:
            headers["Authorization"] = f"Bearer {where.key}"
        verify = self._certificates
        transport = None if where.anywhere else OutsideTransport(self._lookup, self._inside, verify)
        content = json.dumps(body).encode()
        limits = httpx.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s))
        try:
            with (
                httpx.Client(transport=transport, verify=verify, timeout=limits, follow_redirects=False) as client,
                _Deadline(client, self._timeout_s),
                client.stream(
                    "POST",
                    f"{where.url}/chat/completions",
                    content=content,
                    headers=headers | {"Content-Type": _JSON},
                ) as answer,
            ):
                _refuse_status(answer, has_key=bool(where.key))
                return _reply(_read(answer))
        except InsideError:
            raise NoReply(INSIDE, Remedy.PERSON) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, UnicodeError) as error:
            # A host that cannot be a name is a `UnicodeError`. The error's message may contain the address.
            raise NoReply(f"The endpoint cannot be reached ({type(error).__name__}).", Remedy.RETRY) from None
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            words = f"The endpoint did not answer within the time limit or broke off ({type(error).__name__})."
            raise NoReply(words, Remedy.RETRY, may_cost=True) from None


class _Deadline:
    """Closes a client's connections after some seconds. Its own limits start again with every byte."""

    def __init__(self, client: httpx.Client, seconds: float) -> None:
        self._timer = threading.Timer(seconds, client.close)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise _refused("This is not a valid address. Correct it.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused("The address must begin with https:// and name a host, for example https://api.example.org/v1.")
    return parts


def _refused(words: str) -> InvalidError:
    return InvalidError(words, [("/url", words)])


def _refuse_status(answer: httpx.Response, *, has_key: bool) -> None:
    status = answer.status_code
    if httpx.codes.is_success(status):
        return
    if httpx.codes.is_redirect(status):
        raise NoReply("The endpoint redirects to another address. Use that address.", Remedy.PERSON)
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.PAYMENT_REQUIRED):
        words = "The endpoint does not accept the key" if has_key else "The endpoint needs a key"
        raise NoReply(f"{words} ({status}).", Remedy.PERSON)
    if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
        words = "There is no such model at this address, or the address is wrong"
        raise NoReply(f"{words} ({status}). Most addresses end with /v1.", Remedy.PERSON)
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500 or status == httpx.codes.REQUEST_TIMEOUT:
        words = "The endpoint wants fewer requests" if status == 429 else "The endpoint has a problem of its own"
        raise NoReply(f"{words} ({status}).", Remedy.RETRY, retry_after_s=_retry_after(answer))
    raise NoReply(f"The endpoint refuses the request ({status}).", Remedy.NOTHING)


def _retry_after(answer: httpx.Response) -> float | None:
    """The seconds of the header `Retry-After`, which has a number or a date."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _read(answer: httpx.Response) -> bytes:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON or answer.headers.get("content-encoding", "identity") != "identity":
        raise NoReply(_NOT_COMPATIBLE, Remedy.RETRY, may_cost=True)
    found = bytearray()
    for piece in answer.iter_raw():
        found += piece
        if len(found) > MAX_BYTES:
            words = f"An answer is larger than {MAX_BYTES >> 10} KiB."
            raise NoReply(words, Remedy.NOTHING, may_cost=True)
    return bytes(found)


def _reply(content: bytes) -> Reply:
    try:
        found = json.loads(content)
        text = found["choices"][0]["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise NoReply(_NOT_COMPATIBLE, Remedy.RETRY, may_cost=True) from None
    if text is not None and not isinstance(text, str):
        raise NoReply(_NOT_COMPATIBLE, Remedy.RETRY, may_cost=True)
    return Reply(text=(text or "")[:MAX_TEXT], tokens=_tokens(found))


def _tokens(found: dict[str, Any]) -> int | None:
    """The tokens that the endpoint counted, if they are numbers that can be true."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None
    counted = cast("dict[str, Any]", usage)
    parts = [counted.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(part) is int and 0 <= part <= MAX_COUNTED for part in parts):
        return None
    total = counted.get("total_tokens")
    known = [sum(cast("list[int]", parts))] + ([total] if type(total) is int and 0 <= total <= MAX_COUNTED else [])
    return max(known)
