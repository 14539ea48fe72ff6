"""HTTP requests to Kaggle: sign-in, time-outs, error messages and signed URLs.

Every response is validated. A refusal becomes `KaggleError`. An invalid or missing response becomes
`ProviderUnavailable`.
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
from worker.shared.files import atomic_file

CONNECT_S, READ_S, UPLOAD_S = 10.0, 60.0, 300.0
CHUNK_BYTES = 1 << 20
MAX_BREAKS, BREAK_S = 5, 0.05
Sleep = Callable[[float], None]
MAX_PAUSE_S = 3600.0
T = TypeVar("T")


class KaggleError(ProviderUnavailable):
    """Kaggle refused: an HTTP status (200 if the refusal is in a success response) and its own message."""

    def __init__(self, status: int, words: str, retry_after: float | None = None) -> None:
        super().__init__(f"Kaggle refused (HTTP {status}): {words}" if status != 200 else f"Kaggle refused: {words}")
        self.status, self.words, self.retry_after = status, words, retry_after


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """An account's sign-in: an API token, or the older user name and key."""

    username: str | None
    token: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, text: str, username: str | None) -> Credentials:
        """Read a bare token or the JSON of a `kaggle.json`. Raises `ValueError` with a message for people."""
        text = text.strip()
        if not text.startswith("{"):
            if not text or any(c.isspace() for c in text):
                raise ValueError(
                    "The Kaggle token is not one line of text. Create a new one at kaggle.com/settings/api."
                )
            return cls(username=username, token=text)
        try:
            content = json.loads(text)
            return cls(username=username or str(content["username"]), key=str(content["key"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                "The kaggle.json has no username or key. Download a new one from kaggle.com/settings/api."
            ) from None


class _Patient(HTTPAdapter):
    """Sets a time-out for every request, because the SDK sets none."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or (CONNECT_S, READ_S)
        return super().send(request, *args, **kwargs)


class _Careful(_Patient):
    """Refuses a response that is not an object.

    The SDK reads a list or a string as an object without fields. A session would then look queued, and a quota used up.
    """

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        answer = super().send(request, *args, **kwargs)
        body: Any = answer.json() if answer.ok else {}
        if not isinstance(body, dict) or not isinstance(body.get("gpuQuota") or {}, dict):
            raise TypeError("not an object")
        return answer


class Wire:
    """Requests for one account. `endpoint` (loopback) replaces Kaggle's own host."""

    def __init__(self, credentials: Credentials, endpoint: str | None) -> None:
        self._credentials, self._endpoint = credentials, endpoint

    def _call(self, what: str, ask: Callable[[KaggleClient], T]) -> T:
        with self._speaking(what), self._sdk() as sdk:
            return ask(sdk)

    @contextlib.contextmanager
    def _sdk(self) -> Iterator[KaggleClient]:
        """The official client with our own HTTP session.

        With its own session it would prefer a token from the environment or the home folder, and act for another
        account.
        """
        sdk: Any = KaggleClient(env=KaggleEnv.LOCAL if self._endpoint else KaggleEnv.PROD)
        http = sdk.http_client()
        http._endpoint, http._session = self._endpoint or http._endpoint, self._signed_in(_Careful())
        with sdk:
            yield sdk

    def _signed_in(self, adapter: HTTPAdapter | None = None) -> requests.Session:
        """A session with this account's credentials and time-outs. It ignores proxies and `.netrc`."""
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
        """A session without credentials, for signed URLs."""
        with requests.Session() as session:
            session.trust_env = False
            yield session

    def _vet(self, url: str) -> None:
        """Refuse a URL that is neither Google's storage over TLS nor the emulator."""
        if self._endpoint and urlsplit(url).netloc == urlsplit(self._endpoint).netloc:
            return
        if self._endpoint or urlsplit(url).scheme != "https":
            raise ProviderUnavailable("Kaggle returned a file URL on a foreign host")

    @contextlib.contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            raise self._refusal(error, what) from None
        except requests.RequestException as error:
            raise ProviderUnavailable(f"could not reach Kaggle to {what} ({type(error).__name__})") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ProviderUnavailable(
                f"Kaggle's answer to the request to {what} is not valid ({type(error).__name__})"
            ) from None

    def _refusal(self, error: requests.HTTPError, what: str) -> ProviderUnavailable:
        answer = error.response
        if answer is None:
            return ProviderUnavailable(f"Kaggle refused to {what}")
        status, words = _refused(answer)
        if status >= 500 or status == 408:
            return ProviderUnavailable(f"Kaggle could not {what} (HTTP {status})")
        return KaggleError(status, self.clean(words or f"it did not {what}"), _retry_after(answer))

    def clean(self, words: str) -> str:
        """External text for a log or a page: one short line without this account's secret."""
        for secret in (self._credentials.token, self._credentials.key):
            if secret:
                words = words.replace(secret, "***")
        return shortened(words)

    def send_file(self, url: str, source: Path, *, sleep: Sleep = time.sleep) -> None:
        """Upload a file to a signed URL. A broken upload is resumed."""
        self._vet(url)
        with self._speaking("accept an upload"), self._plain() as session:
            _send_file(session, url, source, source.stat().st_size, sleep)

    def download(self, url: str, target: Path, max_bytes: int) -> None:
        """Download a file by its signed URL, at most `max_bytes` of it, or store nothing. An error page is not stored.

        What is cut off does not have the size and the hash that its message names, so it is not used.
        """
        self._vet(url)
        with (
            self._speaking("return a file"),
            self._plain() as session,
            session.get(url, stream=True, timeout=(CONNECT_S, READ_S)) as answer,
        ):
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise ProviderUnavailable("Kaggle returned a web page instead of a session's file")
            with atomic_file(target) as file:
                for chunk in answer.iter_content(CHUNK_BYTES):
                    file.write(chunk[: max_bytes - file.tell()])
                    if file.tell() == max_bytes:
                        return


def _send_file(session: requests.Session, url: str, source: Path, size: int, sleep: Sleep) -> None:
    """PUT with Google's resumable protocol. After a break, ask for the progress and send the rest."""
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
            raise requests.ConnectionError("the upload kept failing")
        sleep(BREAK_S * 2**breaks)


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
    """Status and message of a refusal. Kaggle returns JSON in two shapes, and sometimes a web page."""
    try:
        body = answer.json()
        inner = body.get("error") if isinstance(body.get("error"), dict) else body
        code = inner.get("code")
        return code if isinstance(code, int) else answer.status_code, str(inner.get("message") or "")
    except (ValueError, AttributeError):
        return answer.status_code, ""


def _retry_after(answer: requests.Response) -> float | None:
    """The pause in seconds, also if it is given as a date.

    It has a maximum, so that an account is always tried again.
    """
    header = answer.headers.get("Retry-After", "")
    try:
        try:
            seconds = float(header)
        except ValueError:
            here = answer.headers.get("Date") or formatdate()
            seconds = (parsedate_to_datetime(header) - parsedate_to_datetime(here)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), MAX_PAUSE_S)  # in this order "nan" means no pause
