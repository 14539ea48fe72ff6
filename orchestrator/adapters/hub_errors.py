"""Turns refusals of the Hugging Face hub into messages with a cause and a remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.domain.errors import InvalidError, TrainhopError, UnavailableError

REFUSED = (
    "Hugging Face does not accept your token. Create a read token at https://huggingface.co/settings/tokens and "
    "set it with `trainhop hub login`."
)
MAX_WAIT_S = 3_600.0
BENCHMARK = "/benchmark"
"""The pointer of a request for the items of a benchmark."""
SEARCH = "/search"
"""The pointer of a search, which names no model."""


@dataclass(frozen=True, kw_only=True)
class HubRequest:
    """The repository of a request: the address of its page, and the job file's `pointer` that names it."""

    name: str
    page: str
    pointer: str
    signed_in: bool


@contextmanager
def in_words(request: HubRequest) -> Iterator[None]:
    """Turn an error of the hub's client into an `InvalidError` with a remedy, or into an `UnavailableError`.

    The client's own texts are left out, because they contain addresses, and an address may grant access.
    """
    try:
        yield
    except TrainhopError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _meant(error, request) from None


def _meant(error: Exception, request: HubRequest) -> TrainhopError:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    cause = error.__cause__  # the client says of a refused download that the file is not in its cache either
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, HfHubHTTPError):
        error = cause
    if isinstance(error, HfHubHTTPError):
        return _answered(error, request)
    if isinstance(error, OfflineModeIsEnabled):
        return offline(request)
    if isinstance(error, HFValidationError):
        return _wrong(request, f"{request.name} is not a Hugging Face id. Check the id and revision.")
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return _wrong(
            request, f"The files of {request.name} cannot be read ({type(error).__name__}). Choose another one."
        )
    return UnavailableError(
        f"Could not reach Hugging Face ({type(error).__name__}). Try again in a minute, or {_instead(request)}."
    )


def offline(request: HubRequest) -> InvalidError:
    """The error for offline mode."""
    if request.pointer == SEARCH:
        return _wrong(
            request, f"This server is set to stay offline, so it cannot search. {_instead(request).capitalize()}."
        )
    return _wrong(
        request,
        f"{request.name} cannot be downloaded because this server is set to stay offline. "
        f"To continue, {_instead(request)}.",
    )


def _answered(error: Exception, request: HubRequest) -> TrainhopError:
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError

    answer = error.response  # pyright: ignore[reportAttributeAccessIssue]  an `HfHubHTTPError`
    status = answer.status_code
    if status == 429 or status >= 500:
        return UnavailableError(
            f"Hugging Face is busy (HTTP {status}). Try again later.", retry_after_s=_asked_to_wait(answer.headers)
        )
    if isinstance(error, GatedRepoError):
        return _wrong(request, _gated(request))
    if isinstance(error, RemoteEntryNotFoundError):
        return _wrong(request, f"{request.name} has no file that a job needs. Check the id and revision.")
    if status == 401 and request.signed_in:
        return _wrong(request, REFUSED)
    if status == 403:
        return _wrong(
            request, f"You have no access to {request.name}. Check {request.page} and the permissions of your token."
        )
    return _wrong(request, _missing(request))


def _gated(request: HubRequest) -> str:
    if request.signed_in:
        return (
            f"{request.name} is gated. Accept its terms at {request.page} and try again. A fine-grained "
            "token also needs permission "
            "to read gated repositories."
        )
    return f"{request.name} is gated. Accept its terms at {request.page} and set a token with `trainhop hub login`."


def _missing(request: HubRequest) -> str:
    private = (
        "check the permissions of your token" if request.signed_in else "run `trainhop hub login` if it is private"
    )
    return (
        f"{request.name} was not found on Hugging Face. Check the id and revision, or {private}. "
        f"Otherwise, {_instead(request)}."
    )


def _instead(request: HubRequest) -> str:
    if request.pointer == BENCHMARK:
        return "leave the benchmark out"
    if request.pointer in ("/token", "/hub_model_id"):
        return "check the server's connection"
    if request.pointer == SEARCH:
        return "enter the name of a model or of an allowed folder yourself"
    return "upload the file" if request.pointer == "/path" else "use an allowed folder with its files"


def _wrong(request: HubRequest, words: str) -> InvalidError:
    return InvalidError(words, [(request.pointer, words)])


def _asked_to_wait(headers: dict[str, str]) -> float | None:
    """Seconds, from `Retry-After` or from the reset of a rate limit that is used up."""
    found = re.fullmatch(r"(\d{1,6})", headers.get("Retry-After", "").strip())
    found = found or re.search(r"\bt=(\d{1,6})\b", headers.get("RateLimit", ""))
    return min(float(found[1]), MAX_WAIT_S) if found else None
