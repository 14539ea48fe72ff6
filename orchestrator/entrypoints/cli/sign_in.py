"""Google sign-in: the user agrees in a browser, and the code arrives by redirect or as a pasted address.

OAuth 2.0 for desktop clients with PKCE, with the user's own client. Requests go only to Google's addresses (or to an
emulator on this computer), regardless of the client's file.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import secrets
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import say

SCOPE = "https://www.googleapis.com/auth/drive.file"
PATIENCE_S = 600.0
NOWHERE = "http://127.0.0.1:1/"
"""Redirect address for a browser on another computer. The page fails to load, and the address bar shows the code."""

_DONE = b"<!doctype html><title>Trainhop</title><p>You are signed in. Close this page and go back to the terminal."


@dataclass(frozen=True)
class Client:
    """An OAuth client for desktop applications."""

    client_id: str
    client_secret: str


def read_client(file: Path) -> Client:
    """Read the client secrets file from Google's console."""
    try:
        content: Any = json.loads(file.read_text())
        inner = content["installed"]
        return Client(str(inner["client_id"]), str(inner["client_secret"]))
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            Exit.USAGE,
            f"{file} is not an OAuth client for a desktop app.",
            "Create one at https://console.cloud.google.com/apis/credentials (type: Desktop app) and "
            "download its JSON.",
        ) from error


def sign_in(client: Client, *, browser: bool) -> str:
    """Run the sign-in and return google-auth's `authorized_user` JSON."""
    endpoint = _endpoint()
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    waiting = _Redirect() if browser else None
    redirect_uri = waiting.url if waiting else NOWHERE
    query = {
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "response_type": "code",
        "scope": SCOPE,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "access_type": "offline",
        "prompt": "consent",
    }
    page = f"{endpoint or 'https://accounts.google.com/o/oauth2/v2'}/auth?{urlencode(query)}"
    answer = _await(waiting, page) if waiting else _pasted(page)
    token_uri = f"{endpoint}/token" if endpoint else "https://oauth2.googleapis.com/token"
    return _exchange(client, token_uri, _code(answer, state), verifier, redirect_uri)


def _endpoint() -> str | None:
    """The address of a Drive emulator, if one is set."""
    if "TRAINHOP_DRIVE_ENDPOINT" not in os.environ:
        return None
    from orchestrator.adapters.stores.google_drive.settings import DriveSettings
    from orchestrator.config import Settings

    try:
        return Settings().of_driver("drive", DriveSettings).endpoint
    except ValueError as error:
        raise CommandError(Exit.USAGE, str(error)) from error


class _Redirect:
    """A local page that receives the redirect of one sign-in."""

    def __init__(self) -> None:
        outer = self
        self.answer: dict[str, list[str]] | None = None
        self._heard = threading.Event()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = parse_qs(urlsplit(self.path).query)
                if "state" in answer and outer.answer is None:
                    outer.answer = answer
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(_DONE)))
                self.end_headers()
                self.wfile.write(_DONE)
                if outer.answer is not None:
                    outer._heard.set()

            def log_message(self, *_: object) -> None:
                """Log nothing: the address contains the code."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def wait(self) -> dict[str, list[str]] | None:
        """The query of the redirect, or None after `PATIENCE_S`."""
        until = time.monotonic() + PATIENCE_S
        while not self._heard.wait(0.2) and time.monotonic() < until:
            pass
        self._server.shutdown()
        self._server.server_close()
        return self.answer


def _await(waiting: _Redirect, page: str) -> dict[str, list[str]]:
    opened = webbrowser.open(page)
    say("Agree in the browser:" if opened else "Open this address in a browser on this computer:")
    say(f"  {page}")
    answer = waiting.wait()
    if answer is None:
        raise CommandError(Exit.FAILED, "The sign-in timed out.", "Try again, or use --no-browser.")
    return answer


def _pasted(page: str) -> dict[str, list[str]]:
    say("Open this address in a browser on any computer and agree:")
    say(f"  {page}")
    say("The browser then fails to load a page at 127.0.0.1. Copy the full address of that page and paste it here:")
    line = sys.stdin.readline().strip()
    return parse_qs(urlsplit(line).query)


def _code(answer: dict[str, list[str]], state: str) -> str:
    if "error" in answer:
        raise CommandError(Exit.FAILED, f"Google refused the sign-in: {answer['error'][0]}. Nothing was changed.")
    if not secrets.compare_digest(answer.get("state", [""])[0].encode(), state.encode()):
        raise CommandError(
            Exit.FAILED, "This address belongs to another sign-in. Start again and paste the full address."
        )
    if "code" not in answer:
        raise CommandError(Exit.FAILED, "The address has no code. Paste the full address.")
    return answer["code"][0]


def _exchange(client: Client, token_uri: str, code: str, verifier: str, redirect_uri: str) -> str:
    import httpx

    form = {
        "grant_type": "authorization_code",
        "client_id": client.client_id,
        "client_secret": client.client_secret,
        "code": code,
        "code_verifier": verifier,
        "redirect_uri": redirect_uri,
    }
    try:
        answer = httpx.post(token_uri, data=form, timeout=60.0)
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise CommandError(Exit.UNREACHABLE, f"Could not reach Google ({type(error).__name__}). Try again.") from error
    if "refresh_token" not in body:
        why = body.get("error_description") or body.get("error") or "it returned no refresh token"
        raise CommandError(Exit.FAILED, f"Google refused the sign-in: {why}")
    return json.dumps(
        {
            "type": "authorized_user",
            "client_id": client.client_id,
            "client_secret": client.client_secret,
            "refresh_token": body["refresh_token"],
            "token_uri": token_uri,
        }
    )
