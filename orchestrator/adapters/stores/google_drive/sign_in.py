"""Signs a person in at Google with their own OAuth client, through google-auth-oauthlib."""

from __future__ import annotations

import json
import os
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from google_auth_oauthlib.flow import InstalledAppFlow, WSGITimeoutError
from oauthlib.oauth2.rfc6749.errors import MismatchingStateError, MissingCodeError, OAuth2Error
from requests import RequestException

from orchestrator.adapters.stores.google_drive.login import SCOPE, TOKEN_URI
from orchestrator.ports.stores import InvalidError, StoreUnavailable

AUTH_URI = "https://accounts.google.com/o/oauth2/v2/auth"
MAX_CLIENT = 65_536
PATIENCE_S = 600
CONSOLE = "https://console.cloud.google.com/apis/credentials"
_DONE = "You are signed in. Close this page and go back to the terminal."
_CONSENT = "consent"
"""Asked for with every sign-in, because Google returns a refresh token only with a new consent."""
_BACKGROUND = "trainhop-background"
_INSECURE = "OAUTHLIB_INSECURE_TRANSPORT"
_switching = threading.RLock()
"""Held while the variable is set, which is for emulators only."""


class GoogleSignIn:
    """Implements `ports.SignIn`, with PKCE. Raises `InvalidError` for a client that is not a desktop app's.

    Requests go only to Google, or to `endpoint` if it is set, whatever the client's file says.
    """

    def __init__(self, client: str, endpoint: str | None) -> None:
        self._flow = InstalledAppFlow.from_client_config(_config(client, endpoint), [SCOPE])
        self._endpoint = endpoint

    def begin(self, redirect: str) -> tuple[str, str]:
        self._flow.redirect_uri = redirect
        with _plain_http(allowed=self._endpoint is not None):
            return self._flow.authorization_url(prompt=_CONSENT)

    def finish(self, answer: str) -> str:
        """Of the address only the query counts. The library wants https although the redirect is on this computer."""
        query = urlsplit(answer.strip()).query or answer.strip().removeprefix("?")
        with _in_words(), _plain_http(allowed=self._endpoint is not None):
            self._flow.fetch_token(authorization_response=f"https://localhost/?{query}")
        return self._credentials()

    def in_browser(self) -> str:
        webbrowser.register(_BACKGROUND, None, _InBackground())
        with _in_words(), _plain_http(allowed=self._endpoint is not None):
            self._flow.run_local_server(
                host="127.0.0.1",
                port=0,
                authorization_prompt_message="Agree in the browser, at this address:\n  {url}",
                success_message=_DONE,
                timeout_seconds=PATIENCE_S,
                browser=_BACKGROUND,
                prompt=_CONSENT,
            )
        return self._credentials()

    def _credentials(self) -> str:
        """google-auth's `authorized_user` JSON, without the access token, which ends within the hour."""
        found = self._flow.credentials
        if not found.refresh_token:
            raise _refused("Google returned no refresh token. Remove this app's access in your Google account first")
        return found.to_json(strip=["token", "expiry"])


def _config(client: str, endpoint: str | None) -> dict[str, Any]:
    """The client's id and secret with Google's addresses. No error quotes the file, which holds the secret."""
    try:
        found: Any = json.loads(client) if len(client) <= MAX_CLIENT else None
    except (ValueError, RecursionError):
        found = None
    kind = next((k for k in ("installed", "web") if isinstance(found, dict) and isinstance(found.get(k), dict)), None)
    if kind is None:
        raise _wrong(_guess(found))
    if kind == "web":
        raise _wrong("it is of the type Web application")
    values = {key: found[kind].get(key) for key in ("client_id", "client_secret")}
    if not all(isinstance(value, str) and value for value in values.values()):
        raise _wrong("its client_id or client_secret is missing")
    addresses = {
        "auth_uri": f"{endpoint}/auth" if endpoint else AUTH_URI,
        "token_uri": f"{endpoint}/token" if endpoint else TOKEN_URI,
    }
    return {"installed": values | addresses}


def _guess(found: Any) -> str:
    if not isinstance(found, dict):
        return "it is not the JSON file that Google's console gives out"
    if found.get("type") == "service_account":
        return "it is a service account's key, which has no Drive of its own"
    if "refresh_token" in found:
        return "it is a sign-in that was already made. Use it as credentials"
    return "it is not an OAuth client"


def _wrong(why: str) -> InvalidError:
    words = f"This is not an OAuth client for a desktop app: {why}. Create one of the type Desktop app at {CONSOLE}."
    return InvalidError(words, [("/client", words)])


def _refused(words: str) -> InvalidError:
    return InvalidError(f"The sign-in failed, and nothing was changed: {words}.", [("/answer", words)])


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn the libraries' errors into a sentence. Their own texts are left out, because an address holds the code."""
    try:
        yield
    except MismatchingStateError:
        raise _refused("this address belongs to another sign-in. Start again and paste the full address") from None
    except MissingCodeError:
        raise _refused("the address has no code. Paste the full address of the page that did not load") from None
    except OAuth2Error as error:
        raise _refused(f"Google answered {error.error}") from None
    except Warning:  # oauthlib raises it where the scope differs
        raise _refused("the access to files of this app was not allowed. Allow it in Google's dialog") from None
    except WSGITimeoutError:
        raise _refused("the sign-in was not completed within 10 minutes. Try again, or use --no-browser") from None
    except RequestException as error:
        raise StoreUnavailable(f"Google could not be reached ({type(error).__name__}). Try again") from None


class _InBackground(webbrowser.BaseBrowser):
    """The default browser, which is not waited for: a browser that was just started may end only with its window.

    It opens one address. Without any other browser, the default would be this one again.
    """

    _opened = False

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        if self._opened:
            return False
        self._opened = True
        threading.Thread(target=webbrowser.open, args=(url, new, autoraise), daemon=True).start()
        return True


@contextmanager
def _plain_http(*, allowed: bool) -> Iterator[None]:
    """Let oauthlib call an emulator, which speaks http. Its only switch for that is a variable."""
    if not allowed:
        yield
        return
    with _switching:
        os.environ[_INSECURE] = "1"
        try:
            yield
        finally:
            del os.environ[_INSECURE]
