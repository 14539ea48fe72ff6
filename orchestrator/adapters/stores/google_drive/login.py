"""The credential of a Drive store: the person's own OAuth client and a refresh token, as google-auth writes them down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from orchestrator.domain.errors import InvalidError

SCOPE = "https://www.googleapis.com/auth/drive.file"
"""Files that this client itself has made, and no others."""

TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  an address
_GOOGLE = frozenset({"oauth2.googleapis.com", "accounts.google.com", "www.googleapis.com"})


@dataclass(frozen=True, kw_only=True)
class DriveLogin:
    """What is needed to ask for access tokens."""

    client_id: str
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    token_uri: str = TOKEN_URI


def read_login(text: str, endpoint: str | None) -> DriveLogin:
    """Read an `authorized_user` JSON; raises `InvalidError` in words, which never quote the file.

    Tokens are only ever asked of Google, or of `endpoint` where that is set.
    """
    found = _object(text)
    missing = [name for name in ("client_id", "client_secret", "refresh_token") if not _is_text(found.get(name))]
    if missing:
        raise _invalid(f"{', '.join(missing)} is missing: {_guess(found)}")
    uri = str(found.get("token_uri") or TOKEN_URI)
    if endpoint is not None:
        uri = f"{endpoint}/token"
    elif urlsplit(uri).scheme != "https" or urlsplit(uri).hostname not in _GOOGLE:
        raise _invalid("token_uri leads elsewhere than to Google")
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
        return "this is a service account, which has no space in a personal Drive; sign in as yourself instead"
    if "installed" in found or "web" in found:
        return "this is an OAuth client; give it with --client-secrets and sign in"
    return "an authorized_user file of google-auth is needed"


def _invalid(why: str) -> InvalidError:
    return InvalidError(f"these are no credentials for Google Drive: {why}", [("/credentials", why)])
