"""Signing in to Google: the person agrees in a browser, this computer is told by a redirect, or by a pasted address.

OAuth 2.0 for desktop clients with PKCE. The client is the person's own; only Google's addresses (or those of an emulator on
this computer) are ever asked, whatever the client's file says.
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
"""Where a browser on another computer is sent: nothing answers there, and the address bar keeps the answer."""

_DONE = b"<!doctype html><title>Trainhop</title><p>You are signed in. Close this page and go back to the terminal."


@dataclass(frozen=True)
class Client:
    """An OAuth client for desktop applications."""

    client_id: str
    client_secret: str


def read_client(file: Path) -> Client:
    """The client secrets file that Google's console hands out."""
    try:
        found: Any = json.loads(file.read_text())
        inner = found["installed"]
        return Client(str(inner["client_id"]), str(inner["client_secret"]))
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            Exit.USAGE,
            f"{file} is no OAuth client for a desktop app",
            "make one at https://console.cloud.google.com/apis/credentials (type: Desktop app) and download its JSON",
        ) from error


def sign_in(client: Client, *, browser: bool) -> str:
    """Ask the person, and return what google-auth calls `authorized_user` JSON."""
    endpoint = _endpoint()
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    waiting = _Redirect() if browser else None
    redirect_uri = waiting.url if waiting else NOWHERE
    asked = {
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
    page = f"{endpoint or 'https://accounts.google.com/o/oauth2/v2'}/auth?{urlencode(asked)}"
    answer = _await(waiting, page) if waiting else _pasted(page)
    token_uri = f"{endpoint}/token" if endpoint else "https://oauth2.googleapis.com/token"
    return _exchange(client, token_uri, _code(answer, state), verifier, redirect_uri)


def _endpoint() -> str | None:
    """The emulator that the server is pointed at too, if there is one."""
    if "TRAINHOP_DRIVE_ENDPOINT" not in os.environ:
        return None
    from pydantic import ValidationError

    from orchestrator.config import Settings

    try:
        return Settings().drive_endpoint
    except ValidationError as error:
        raise CommandError(Exit.USAGE, f"TRAINHOP_DRIVE_ENDPOINT: {error.errors()[0]['msg']}") from error


class _Redirect:
    """A page on this computer that the browser is sent to; it hears one answer."""

    def __init__(self) -> None:
        outer = self
        self.answer: dict[str, list[str]] | None = None
        self._heard = threading.Event()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = parse_qs(urlsplit(self.path).query)
                if "state" in found and outer.answer is None:
                    outer.answer = found
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(_DONE)))
                self.end_headers()
                self.wfile.write(_DONE)
                if outer.answer is not None:
                    outer._heard.set()

            def log_message(self, *_: object) -> None:
                """Nothing: the address holds the code."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def wait(self) -> dict[str, list[str]] | None:
        """What the browser brought, or None after `PATIENCE_S`."""
        until = time.monotonic() + PATIENCE_S
        while not self._heard.wait(0.2) and time.monotonic() < until:
            pass
        self._server.shutdown()
        self._server.server_close()
        return self.answer


def _await(waiting: _Redirect, page: str) -> dict[str, list[str]]:
    opened = webbrowser.open(page)
    say("agree in the browser" if opened else "open this address in a browser on this computer:")
    say(f"  {page}")
    answer = waiting.wait()
    if answer is None:
        raise CommandError(Exit.FAILED, "nobody agreed in time", "try again, or use --no-browser")
    return answer


def _pasted(page: str) -> dict[str, list[str]]:
    say("open this address in a browser on any computer and agree:")
    say(f"  {page}")
    say("the browser then cannot show a page at 127.0.0.1; copy that page's whole address and paste it here:")
    line = sys.stdin.readline().strip()
    return parse_qs(urlsplit(line).query)


def _code(answer: dict[str, list[str]], state: str) -> str:
    if "error" in answer:
        raise CommandError(Exit.FAILED, f"Google says {answer['error'][0]}: nothing was changed")
    if not secrets.compare_digest(answer.get("state", [""])[0].encode(), state.encode()):
        raise CommandError(
            Exit.FAILED, "this is not the answer to this sign-in; start again and paste the whole address"
        )
    if "code" not in answer:
        raise CommandError(Exit.FAILED, "the address holds no code; paste all of it")
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
        found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise CommandError(Exit.UNREACHABLE, f"Google cannot be reached ({type(error).__name__})") from error
    if "refresh_token" not in found:
        why = found.get("error_description") or found.get("error") or "no refresh token came back"
        raise CommandError(Exit.FAILED, f"Google refuses the sign-in: {why}")
    return json.dumps(
        {
            "type": "authorized_user",
            "client_id": client.client_id,
            "client_secret": client.client_secret,
            "refresh_token": found["refresh_token"],
            "token_uri": token_uri,
        }
    )
