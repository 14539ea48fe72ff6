"""How this server talks to Kaggle: sign-in, time-outs, refusals in words, signed URLs.

Whatever Kaggle answers is checked: a refusal becomes `KaggleError`, nonsense and silence `ProviderUnavailable`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from kagglesdk import KaggleClient, KaggleEnv
from kagglesdk.kaggle_env import get_endpoint
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.adapters import HTTPAdapter

from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.providers.last_words import shortened

CONNECT_S, READ_S, UPLOAD_S = 10.0, 60.0, 300.0
CHUNK_BYTES = 1 << 20
MAX_BREAKS, BREAK_S = 5, 0.05
MAX_PAUSE_S = 3600.0
T = TypeVar("T")


class KaggleError(ProviderUnavailable):
    """Kaggle refused, with an HTTP status (200 where the refusal came inside a good answer) and its own words."""

    def __init__(self, status: int, words: str, retry_after: float | None = None) -> None:
        super().__init__(f"Kaggle refused (HTTP {status}): {words}" if status != 200 else f"Kaggle refused: {words}")
        self.status, self.words, self.retry_after = status, words, retry_after


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """How an account signs in: an API token, or the older user name and key."""

    username: str | None
    token: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, text: str, username: str | None) -> Credentials:
        """From a bare token, or from the JSON of a `kaggle.json`; raises `ValueError` in words."""
        text = text.strip()
        if not text.startswith("{"):
            if not text or any(c.isspace() for c in text):
                raise ValueError("the Kaggle token is not one line of text; make a new one at kaggle.com/settings/api")
            return cls(username=username, token=text)
        try:
            said = json.loads(text)
            return cls(username=username or str(said["username"]), key=str(said["key"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError("a kaggle.json holds an object with username and key; this one does not") from None


class _Patient(HTTPAdapter):
    """Gives every request a time-out: the SDK sets none."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or (CONNECT_S, READ_S)
        return super().send(request, *args, **kwargs)


class _Careful(_Patient):
    """The SDK takes a list, or a string, for an object without fields: a session then seems queued, a quota used up."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        answer = super().send(request, *args, **kwargs)
        said: Any = answer.json() if answer.ok else {}
        if not isinstance(said, dict) or not isinstance(said.get("gpuQuota") or {}, dict):
            raise TypeError("not an object")
        return answer


class Wire:
    """Requests on behalf of one account. `endpoint` (loopback) stands in for Kaggle's own host."""

    def __init__(self, credentials: Credentials, endpoint: str | None) -> None:
        self._credentials, self._endpoint = credentials, endpoint

    def _call(self, what: str, ask: Callable[[KaggleClient], T]) -> T:
        with self._speaking(what), self._sdk() as sdk:
            return ask(sdk)

    @contextlib.contextmanager
    def _sdk(self) -> Iterator[KaggleClient]:
        """The official client over a session of ours.

        Left to make its own, it would prefer a token that it finds in the environment or at home, and work for somebody else.
        """
        sdk: Any = KaggleClient(env=KaggleEnv.LOCAL if self._endpoint else KaggleEnv.PROD)
        http = sdk.http_client()
        http._endpoint, http._session = self._endpoint or http._endpoint, self._signed_in(_Careful())
        with sdk:
            yield sdk

    def _signed_in(self, adapter: HTTPAdapter | None = None) -> requests.Session:
        """A session with this account's credentials and time-outs; it knows neither proxies nor `.netrc`."""
        known, session = self._credentials, requests.Session()
        session.trust_env = False
        session.auth = (
            KaggleHttpClient.BearerAuth(known.token) if known.token else (known.username or "", known.key or "")
        )
        session.headers.update({"User-Agent": "trainhop", "Content-Type": "application/json"})
        for scheme in ("https://", "http://"):
            session.mount(scheme, adapter or _Patient())
        return session

    @property
    def _base(self) -> str:
        return f"{self._endpoint}/api" if self._endpoint else get_endpoint(KaggleEnv.PROD)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[requests.Session]:
        """For signed URLs, which are shown no credentials."""
        with requests.Session() as session:
            session.trust_env = False
            yield session

    def _vet(self, url: str) -> None:
        """Signed URLs lead to Google's storage over TLS, or to the emulator; nothing else may send us anywhere."""
        if self._endpoint and urlsplit(url).netloc == urlsplit(self._endpoint).netloc:
            return
        if self._endpoint or urlsplit(url).scheme != "https":
            raise ProviderUnavailable("Kaggle named an address for a file that is not its own")

    @contextlib.contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            raise self._refusal(error, what) from None
        except requests.RequestException as error:
            raise ProviderUnavailable(f"Kaggle cannot be reached to {what} ({type(error).__name__})") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ProviderUnavailable(
                f"Kaggle's answer, when asked to {what}, makes no sense ({type(error).__name__})"
            ) from None

    def _refusal(self, error: requests.HTTPError, what: str) -> ProviderUnavailable:
        answer = error.response
        if answer is None:
            return ProviderUnavailable(f"Kaggle refused to {what}")
        status, words = _refused(answer)
        if status >= 500 or status == 408:
            return ProviderUnavailable(f"Kaggle is not able to {what} now (HTTP {status})")
        return KaggleError(status, self.clean(words or f"it did not {what}"), _retry_after(answer))

    def clean(self, words: str) -> str:
        """Foreign words for a log or a page: one line, not long, without this account's secret."""
        for secret in (self._credentials.token, self._credentials.key):
            if secret:
                words = words.replace(secret, "***")
        return shortened(words)

    def send_file(self, url: str, source: Path) -> None:
        """Bring a file to a signed URL, going on where a broken connection stopped."""
        self._vet(url)
        with self._speaking("take an upload"), self._plain() as session:
            _send_file(session, url, source, source.stat().st_size)

    def download(self, url: str, target: Path) -> None:
        """A file by its signed URL, whole or not at all; an error page is not taken for it."""
        self._vet(url)
        aside = target.with_name(f".incoming-{target.name}")
        with (
            self._speaking("give a file"),
            self._plain() as session,
            session.get(url, stream=True, timeout=(CONNECT_S, READ_S)) as answer,
        ):
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise ProviderUnavailable("Kaggle sent a web page in place of a session's file")
            with aside.open("wb") as file:
                for chunk in answer.iter_content(CHUNK_BYTES):
                    file.write(chunk)
        aside.replace(target)


def _send_file(session: requests.Session, url: str, source: Path, size: int) -> None:
    """PUT with Google's resumable protocol: after a break, ask what arrived and send the rest."""
    start: int | None = 0
    breaks = 0
    while True:
        asks = start is None
        try:
            answer = _ask(session, url, size) if start is None else _send_rest(session, url, source, start, size)
            if answer.status_code < 500 and answer.status_code != 308:
                answer.raise_for_status()
                return
            start = _arrived(answer) if answer.status_code == 308 else None
        except (requests.ConnectionError, requests.Timeout):
            start = None
        if asks and start is not None:
            continue
        breaks += 1
        if breaks > MAX_BREAKS:
            raise requests.ConnectionError("the upload broke again and again")
        time.sleep(BREAK_S * 2**breaks)


def _send_rest(session: requests.Session, url: str, source: Path, start: int, size: int) -> requests.Response:
    headers = {"Content-Length": str(size - start)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    with source.open("rb") as file:
        file.seek(start)
        return session.put(url, data=file if size else b"", headers=headers, timeout=(CONNECT_S, UPLOAD_S))


def _ask(session: requests.Session, url: str, size: int) -> requests.Response:
    return session.put(url, headers={"Content-Range": f"bytes */{size}"}, timeout=(CONNECT_S, READ_S))


def _arrived(answer: requests.Response) -> int:
    return int(answer.headers["Range"].rpartition("-")[2]) + 1 if "Range" in answer.headers else 0


def _refused(answer: requests.Response) -> tuple[int, str]:
    """Status and words of a refusal; Kaggle's JSON comes in two shapes, and sometimes it is a web page."""
    try:
        said = answer.json()
        inner = said.get("error") if isinstance(said.get("error"), dict) else said
        code = inner.get("code")
        return code if isinstance(code, int) else answer.status_code, str(inner.get("message") or "")
    except (ValueError, AttributeError):
        return answer.status_code, ""


def _retry_after(answer: requests.Response) -> float | None:
    """Seconds, which may be told as a date; never so many that the account would be forgotten over them."""
    said = answer.headers.get("Retry-After", "")
    try:
        try:
            seconds = float(said)
        except ValueError:
            here = answer.headers.get("Date") or formatdate()
            seconds = (parsedate_to_datetime(said) - parsedate_to_datetime(here)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), MAX_PAUSE_S)  # in this order "nan" is no pause
