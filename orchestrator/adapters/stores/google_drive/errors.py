"""Classifies Google's errors: try again, sign in again, free space, or give up."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.ports.stores import ObjectMissing, StoreError, StoreFull, StoreUnavailable
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
    """The id is in use: the file exists already."""


class GoneError(ObjectMissing):
    """No file has this id, or this client cannot see it."""


class AgainError(StoreUnavailable):
    """A temporary error. Try again, after `after_s` if it is known."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class SignInError(StoreUnavailable):
    """The credentials are no longer valid. A person must sign in again."""


_BY_STATUS: dict[int, type[StoreError]] = {404: GoneError, 409: AlreadyThereError}


def meaning(status: int, body: bytes, retry_after: str = "") -> StoreError:
    """The error for an answer of the Drive API that is not a success."""
    reason, said = _explained(body)
    words = f"Google Drive answered {status}" + (f" {reason}" if reason else "")
    if status in _BY_STATUS:
        return _BY_STATUS[status](words)
    if status == 403 and reason in FULL:
        return StoreFull("Google Drive is full. Empty its trash, delete files, or get more space")
    if status in RETRY or (status == 403 and reason in SLOW_DOWN):
        return AgainError(words, min(float(retry_after), MAX_RETRY_AFTER_S) if retry_after.isdecimal() else 0.0)
    if status == 401 or (status == 403 and reason in _REMEDIES):
        return SignInError(
            f"Google Drive does not accept these credentials ({reason or 401}). To fix it, "
            f"{_REMEDIES.get(reason, SIGN_IN)}"
        )
    if reason in _NOT_TODAY:
        return StoreUnavailable(f"{words}. Its limits reset at midnight Pacific time")
    return StoreUnavailable(f"{words}: {said}" if said else words)


def refused_refresh(status: int, message: str) -> StoreError:
    """The error for a token that could not be refreshed."""
    if status in RETRY:
        return AgainError(f"Google's token service answered {status}")
    if "invalid_grant" in message:
        return SignInError(
            f"Google no longer accepts the server's sign-in (invalid_grant). To fix it, {SIGN_IN}. If "
            "this happens every 7 "
            "days, the OAuth consent screen is in testing: publish it"
        )
    if "client" in message:
        return SignInError(f"Google does not know this OAuth client. To fix it, {SIGN_IN}")
    return SignInError(f"Google refused to refresh the sign-in (HTTP {status}). To fix it, {SIGN_IN}")


def _explained(body: bytes) -> tuple[str, str]:
    """Reason and message of an error document. Empty for any other page."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error["errors"][0]["reason"]), str(error.get("message", ""))[:300]
    except (ValueError, KeyError, IndexError, TypeError):
        return "", ""
