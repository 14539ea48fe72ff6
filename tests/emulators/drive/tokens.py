"""Google's side of OAuth: consent with PKCE, codes, refresh tokens that can die, access tokens that run out."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.emulators.drive.state import Problem
from tests.emulators.drive.wire import Reply, Request


@dataclass
class _Code:
    client: str
    redirect_uri: str
    challenge: str
    scope: str


@dataclass
class Tokens:
    """`revoke` ends every refresh token, `expire` every access token; `consent` False is a person who says no."""

    client_id: str = "emulated-client.apps.googleusercontent.com"
    client_secret: str = "emulated-client-secret"
    refresh_tokens: set[str] = field(default_factory=lambda: {"emulated-refresh-token"})
    lifetime_s: float = 3600.0
    consent: bool = True
    refreshed: int = 0
    _access: dict[str, float] = field(default_factory=dict)
    _codes: dict[str, _Code] = field(default_factory=dict)

    def authorized_user(self, endpoint: str) -> dict[str, str]:
        """What google-auth calls an `authorized_user` file."""
        return {
            "type": "authorized_user",
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "refresh_token": min(self.refresh_tokens),
            "token_uri": f"{endpoint}/token",
        }

    def client_secrets(self, endpoint: str) -> dict[str, Any]:
        """What the Google console hands out for a desktop client."""
        return {
            "installed": {
                "client_id": self.client_id,
                "client_secret": self.client_secret,
                "auth_uri": f"{endpoint}/auth",
                "token_uri": f"{endpoint}/token",
                "redirect_uris": ["http://localhost"],
            }
        }

    @property
    def issued(self) -> list[str]:
        """The access tokens that were given out, the expired ones too."""
        return list(self._access)

    def sign_in(self) -> str:
        """A new access token, as a notebook's sign-in has one."""
        return str(self._issue()["access_token"])

    def revoke(self) -> None:
        self.refresh_tokens.clear()
        self.expire()

    def expire(self) -> None:
        self._access.clear()

    def check(self, request: Request) -> None:
        """Raise 401 unless the request bears an access token that still counts."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        until = self._access.get(token)
        if scheme != "Bearer" or until is None or until < time.monotonic():
            raise Problem(401, "authError", "Invalid Credentials")

    def consent_page(self, request: Request) -> Reply:
        """The person's answer, at once: a redirect with a code, or with `access_denied`."""
        asked = request.query
        if asked.get("client_id") != self.client_id or asked.get("response_type") != "code":
            return Reply(400, b"<html>Error 401: invalid_client</html>", {"Content-Type": "text/html"})
        answer = {"state": asked.get("state", "")}
        if self.consent:
            code = secrets.token_urlsafe(16)
            self._codes[code] = _Code(
                asked["client_id"], asked["redirect_uri"], asked.get("code_challenge", ""), asked["scope"]
            )
            answer["code"] = code
        else:
            answer["error"] = "access_denied"
        return Reply(302, b"", {"Location": f"{asked['redirect_uri']}?{urlencode(answer)}"})

    def exchange(self, request: Request) -> Reply:
        form = {k: v[-1] for k, v in parse_qs(request.body().decode()).items()}
        if _client(request, form) != (self.client_id, self.client_secret):
            return _refused(401, "invalid_client", "The OAuth client was not found.")
        if form.get("grant_type") == "refresh_token":
            if form.get("refresh_token") not in self.refresh_tokens:
                return _refused(400, "invalid_grant", "Token has been expired or revoked.")
            self.refreshed += 1
            return Reply.of(self._issue())
        code = self._codes.pop(form.get("code", ""), None)
        verifier = form.get("code_verifier", "")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        if code is None or code.redirect_uri != form.get("redirect_uri") or code.challenge not in ("", challenge):
            return _refused(400, "invalid_grant", "Malformed auth code.")
        fresh = secrets.token_urlsafe(24)
        self.refresh_tokens.add(fresh)
        return Reply.of(self._issue() | {"refresh_token": fresh, "scope": code.scope})

    def _issue(self) -> dict[str, Any]:
        token = secrets.token_urlsafe(24)
        self._access[token] = time.monotonic() + self.lifetime_s
        return {"access_token": token, "expires_in": round(self.lifetime_s), "token_type": "Bearer"}


def _client(request: Request, form: dict[str, str]) -> tuple[str | None, str | None]:
    """Id and secret of the client: in the form, or as HTTP Basic. Google takes both."""
    scheme, _, coded = request.headers.get("authorization", "").partition(" ")
    if scheme != "Basic":
        return form.get("client_id"), form.get("client_secret")
    name, _, secret = base64.b64decode(coded).decode().partition(":")
    return name, secret


def _refused(status: int, error: str, description: str) -> Reply:
    return Reply.of({"error": error, "error_description": description}, status)
