"""Requests to OpenAI-compatible chat endpoints, within limits. What an endpoint writes in an error is not repeated."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx

from orchestrator.adapters import private_networks
from orchestrator.adapters.outside_transport import InsideError, OutsideTransport
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.judges import NoReply, Remedy

CONNECT_S = 10.0
INSIDE = "This address is in the server's own network. Only an admin can use it."
NOT_COMPATIBLE = "The answer of this address is not that of an OpenAI-compatible chat endpoint."
JSON = "application/json"
PATH = "/chat/completions"


class Line:
    """The connection of one request, which `cut` ends at once from any thread.

    Closing it instead would end neither one that is being made, nor one on which a thread waits for the next byte.
    """

    def __init__(self) -> None:
        self._lock, self.is_cut = threading.Lock(), False
        self._socket: socket.socket | None = None

    def cut(self) -> None:
        """End the connection, and any that is made later."""
        with self._lock:
            self.is_cut = True
            self._shut()

    def trace(self, step: str, about: Mapping[str, Any]) -> None:
        """Hear of each step of the request. Implements the extension `trace` of httpcore."""
        if step.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._socket = about["return_value"].get_extra_info("socket")
                if self.is_cut:
                    self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)


class EndpointCalls:
    """Checks addresses and sends requests. `lookup` resolves a host's addresses.

    A request to the outside is sent without a proxy to exactly the address that was checked. Redirects are not
    followed, because they would take key and answers elsewhere.
    """

    def __init__(
        self,
        lookup: private_networks.Lookup = private_networks.lookup,
        inside: private_networks.IsInside = private_networks.is_inside,
    ) -> None:
        self._lookup, self._inside = lookup, inside

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Loaded once, because it takes longer than a request."""
        return httpx.create_ssl_context()

    def check(self, url: str, *, anywhere: bool) -> str:
        """The address in its normal form. Raises `InvalidError` for one that cannot be used."""
        parts = _split(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise _refused("Give the address without a user, a query or a fragment. The key has a field of its own.")
        is_inside = private_networks.leads_inside(parts.hostname, self._lookup, self._inside)
        if is_inside and not anywhere:
            raise _refused(INSIDE)
        if parts.scheme == "http" and not is_inside:
            raise _refused("http:// sends key and answers unprotected through the internet. Use https://.")
        return url.strip().rstrip("/").removesuffix(PATH)

    @contextmanager
    def post(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        key: str,
        anywhere: bool,
        accept: str,
        read_s: float,
        whole_s: float,
        line: Line | None = None,
    ) -> Generator[httpx.Response]:
        """An answer with the status of success, whose body is read in the block.

        `read_s` seconds may pass without a byte, and `whole_s` for all of it. `line` can end it earlier.
        Raises `NoReply`, also for what happens in the block.
        """
        line = line or Line()
        headers = {"Accept": accept, "Accept-Encoding": "identity", "User-Agent": "trainhop", "Content-Type": JSON}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        verify = self._certificates
        transport = None if anywhere else OutsideTransport(self._lookup, self._inside, verify)
        limits = httpx.Timeout(read_s, connect=min(CONNECT_S, read_s))
        content = json.dumps(body).encode()
        try:
            with (
                httpx.Client(transport=transport, verify=verify, timeout=limits, follow_redirects=False) as client,
                _Deadline(line, whole_s),
            ):
                traced = {"trace": line.trace}
                with client.stream(
                    "POST", f"{url}{PATH}", content=content, headers=headers, extensions=traced
                ) as answer:
                    _refuse_status(answer, has_key=bool(key))
                    if answer.headers.get("content-encoding", "identity") != "identity":
                        raise NoReply(NOT_COMPATIBLE, Remedy.RETRY, may_cost=True)
                    yield answer
        except InsideError:
            raise NoReply(INSIDE, Remedy.PERSON) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, UnicodeError) as error:
            # A host that cannot be a name is a `UnicodeError`. The error's message may contain the address.
            raise NoReply(f"The endpoint cannot be reached ({type(error).__name__}).", Remedy.RETRY) from None
        except (httpx.HTTPError, OSError) as error:
            raise _broken_off(type(error).__name__) from None
        except NoReply:
            if line.is_cut:  # what was read of the answer ends anywhere
                raise _broken_off("cut") from None
            raise


class _Deadline:
    """Cuts a line after some seconds. The HTTP client's own limits start again with every byte."""

    def __init__(self, line: Line, seconds: float) -> None:
        self._timer = threading.Timer(seconds, line.cut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def content_type(answer: httpx.Response) -> str:
    """The type of an answer, without its parameters."""
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


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


def _broken_off(how: str) -> NoReply:
    words = f"The endpoint did not answer within the time limit or broke off ({how})."
    return NoReply(words, Remedy.RETRY, may_cost=True)


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
