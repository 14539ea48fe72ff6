"""What the Hugging Face hub's refusals mean, in words: who has to do what."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.domain.errors import InvalidError, TrainhopError, UnavailableError

REFUSED = (
    "the Hugging Face hub does not accept your token: make one that may read at https://huggingface.co/settings/tokens and "
    "set it with `trainhop hub login`"
)
MAX_WAIT_S = 3_600.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the hub was asked for: a repository, by the address of its page, as a job's `pointer` names it."""

    name: str
    page: str
    pointer: str
    signed_in: bool


@contextmanager
def in_words(asked: Asked) -> Iterator[None]:
    """Turn what the hub's client raises into an `InvalidError` that a person can act on, or an `UnavailableError`.

    The client's own texts are left out: they hold addresses, and an address may be a permission.
    """
    try:
        yield
    except TrainhopError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _meant(error, asked) from None


def _meant(error: Exception, asked: Asked) -> TrainhopError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _answered(error, asked)
    if isinstance(error, OfflineModeIsEnabled):
        return offline(asked)
    if isinstance(error, HFValidationError):
        return _wrong(asked, f"{asked.name} is no id of the hub; check the id and revision")
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return _wrong(asked, f"what {asked.name} holds cannot be read ({type(error).__name__}); name another one")
    return UnavailableError(
        f"the Hugging Face hub does not answer ({type(error).__name__}): try again in a minute, or {_instead(asked)}"
    )


def offline(asked: Asked) -> InvalidError:
    """Nobody may be asked."""
    return _wrong(
        asked,
        f"{asked.name} cannot be had from the hub: this server is set to stay offline; {_instead(asked)}",
    )


def _answered(error: Exception, asked: Asked) -> TrainhopError:
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError

    answer = error.response  # pyright: ignore[reportAttributeAccessIssue]  an `HfHubHTTPError`
    status = answer.status_code
    if status == 429 or status >= 500:
        return UnavailableError(
            f"the Hugging Face hub is busy (HTTP {status}): try again later",
            retry_after_s=_asked_to_wait(answer.headers),
        )
    if isinstance(error, GatedRepoError):
        return _wrong(asked, _gated(asked))
    if isinstance(error, RemoteEntryNotFoundError):
        return _wrong(asked, f"{asked.name} lacks a file that a job needs; check the id and revision")
    if status == 401 and asked.signed_in:
        return _wrong(asked, REFUSED)
    if status == 403:
        return _wrong(
            asked, f"the hub does not let you read {asked.name}: see {asked.page}, and what your token may read"
        )
    return _wrong(asked, _missing(asked))


def _gated(asked: Asked) -> str:
    if asked.signed_in:
        return (
            f"{asked.name} is gated: accept its terms at {asked.page} and try again; a fine-grained token also needs the right "
            "to read gated repositories"
        )
    return f"{asked.name} is gated: accept its terms at {asked.page} and set a token with `trainhop hub login`"


def _missing(asked: Asked) -> str:
    private = "your token may not read it" if asked.signed_in else "it is private and needs `trainhop hub login`"
    return f"{asked.name} cannot be had from the hub: check the id and revision, or {private}; else {_instead(asked)}"


def _instead(asked: Asked) -> str:
    return "upload the file instead" if asked.pointer == "/path" else "name an allowed folder that holds it instead"


def _wrong(asked: Asked, words: str) -> InvalidError:
    return InvalidError(words, [(asked.pointer, words)])


def _asked_to_wait(headers: dict[str, str]) -> float | None:
    """Seconds, from `Retry-After` or from the reset of a rate limit that is used up."""
    found = re.fullmatch(r"(\d{1,6})", headers.get("Retry-After", "").strip())
    found = found or re.search(r"\bt=(\d{1,6})\b", headers.get("RateLimit", ""))
    return min(float(found[1]), MAX_WAIT_S) if found else None
