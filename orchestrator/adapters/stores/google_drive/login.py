"""The credential of a Drive store: the owner's OAuth client and a refresh token, in google-auth's format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from orchestrator.ports.stores import InvalidError

SCOPE = "https://www.googleapis.com/auth/drive.file"
"""Access to the files that this client has made, and to no others."""

TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  an address

_GOOGLE = frozenset({"oauth2.googleapis.com", "accounts.google.com", "www.googleapis.com"})


@dataclass(frozen=True, kw_only=True)
class DriveLogin:
    """The values that are needed to request access tokens."""

    client_id: str
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    token_uri: str = TOKEN_URI


def read_login(text: str, endpoint: str | None) -> DriveLogin:
    """Read an `authorized_user` JSON. Raises `InvalidError` with a message that never quotes the file.

    Tokens are only requested from Google, or from `endpoint` if it is set.
    """
    found = _object(text)
    missing = [name for name in ("client_id", "client_secret", "refresh_token") if not _is_text(found.get(name))]
    if missing:
        raise _invalid(f"{', '.join(missing)} is missing: {_guess(found)}")
    uri = str(found.get("token_uri") or TOKEN_URI)
    if endpoint is not None:
        uri = f"{endpoint}/token"
    elif urlsplit(uri).scheme != "https" or urlsplit(uri).hostname not in _GOOGLE:
        raise _invalid("token_uri is not an address of Google")
    return DriveLogin(
        client_id=found["client_id"],
        client_secret=found["client_secret"],
        refresh_token=found["refresh_token"],
        token_uri=uri,
    )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        raise _invalid("it is not JSON") from None
    if not isinstance(found, dict):
        raise _invalid("it is not a JSON object")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _guess(found: dict[str, Any]) -> str:
    if found.get("type") == "service_account":
        return "this is a service account, which has no personal Drive. Sign in with your own account"
    if "installed" in found or "web" in found:
        return "this is an OAuth client. Pass it with --client-secrets and sign in"
    return "pass an authorized_user file of google-auth"


def _invalid(why: str) -> InvalidError:
    return InvalidError(f"These are not credentials for Google Drive: {why}", [("/credentials", why)])
