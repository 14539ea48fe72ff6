"""What Google's answers mean: try again, sign in again, make space, or give up."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.ports.providers import ObjectMissing, StoreError, StoreFull, StoreUnavailable
from worker.shared.resumable_upload import FULL, MAX_RETRY_AFTER_S, RETRY, SLOW_DOWN

SIGN_IN = "sign in again: trainhop store use drive --client-secrets FILE"
_NOT_TODAY = frozenset(
    {"dailyLimitExceeded", "dailyLimitExceededUnreg", "userAccess", "activeItemCreationLimitExceeded"}
)
_REMEDIES = {
    "accessNotConfigured": "enable the Google Drive API in the project of this OAuth client",
    **dict.fromkeys(("insufficientPermissions", "insufficientScopes", "forbidden", "authError"), SIGN_IN),
}


class AlreadyThereError(StoreError):
    """The id is taken: what was to be created exists."""


class GoneError(ObjectMissing):
    """Nothing has this id, or not for this client."""


class AgainError(StoreUnavailable):
    """Worth another try, in `after_s` if that is known."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class SignInError(StoreUnavailable):
    """Only a person can help: the credentials are of no use any more."""


_BY_STATUS: dict[int, type[StoreError]] = {404: GoneError, 409: AlreadyThereError}


def meaning(status: int, body: bytes, retry_after: str = "") -> StoreError:
    """The error for an answer of the Drive API that is not a success."""
    reason, said = _explained(body)
    words = f"Google Drive answers {status}" + (f" {reason}" if reason else "")
    if status in _BY_STATUS:
        return _BY_STATUS[status](words)
    if status == 403 and reason in FULL:
        return StoreFull("Google Drive has no space left; empty its trash, delete something there, or get more space")
    if status in RETRY or (status == 403 and reason in SLOW_DOWN):
        return AgainError(words, min(float(retry_after), MAX_RETRY_AFTER_S) if retry_after.isdecimal() else 0.0)
    if status == 401 or (status == 403 and reason in _REMEDIES):
        return SignInError(
            f"Google Drive does not accept these credentials ({reason or 401}); {_REMEDIES.get(reason, SIGN_IN)}"
        )
    if reason in _NOT_TODAY:
        return StoreUnavailable(f"{words}; its limits are reset at midnight Pacific time")
    return StoreUnavailable(f"{words}: {said}" if said else words)


def refused_refresh(status: int, message: str) -> StoreError:
    """The error for a token that could not be refreshed."""
    if status in RETRY:
        return AgainError(f"Google's token service answers {status}")
    if "invalid_grant" in message:
        return SignInError(
            f"Google does not accept the sign-in of this server any more (invalid_grant); {SIGN_IN}. If this happens every 7 "
            "days, the OAuth consent screen is still in testing: publish it"
        )
    if "client" in message:
        return SignInError(f"Google does not know this OAuth client any more; {SIGN_IN}")
    return SignInError(f"Google refuses to refresh the sign-in (HTTP {status}); {SIGN_IN}")


def _explained(body: bytes) -> tuple[str, str]:
    """Reason and message of an error document; nothing for a page that is none."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error["errors"][0]["reason"]), str(error.get("message", ""))[:300]
    except (ValueError, KeyError, IndexError, TypeError):
        return "", ""
