"""The calls to Google Drive's API v2 that the store needs. All can be repeated. See `errors` for their errors.

PyDrive2 signs in and refreshes the token. Requests are built from the discovery document in its client library, so no
document is downloaded before the first call. The client uses v2 because no later version has compare-and-swap.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httplib2
import stamina
from googleapiclient import discovery, discovery_cache
from googleapiclient.errors import HttpError
from googleapiclient.http import HttpRequest
from oauth2client.client import HttpAccessTokenRefreshError, OAuth2Credentials
from pydrive2.auth import GoogleAuth

from orchestrator.adapters.stores.google_drive.errors import (
    AgainError,
    AlreadyThereError,
    GoneError,
    SignInError,
    meaning,
    refused_refresh,
)
from orchestrator.adapters.stores.google_drive.login import SCOPE, DriveLogin
from orchestrator.adapters.stores.google_drive.settings import NOTEBOOK

FOLDER = "application/vnd.google-apps.folder"
HTTP_TIMEOUT_S = 30.0
IDS_AT_ONCE = 100
PROPERTY = "trainhop"
_MAX_PROPERTY = 124
_FILE = "id,fileSize,sha256Checksum,labels/trashed"
_ABOUT = "user/emailAddress,quotaBytesTotal,quotaBytesUsed,quotaBytesUsedAggregate,quotaType"


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a call is repeated, and how long that may take in total. A worker or a person waits for the result.

    After a failed call, others are tried only once for `silent_s`, or for the time that Drive asked for.
    """

    attempts: int = 8
    within_s: float = 25.0
    first_s: float = 0.5
    longest_s: float = 8.0
    jitter_s: float = 1.0
    silent_s: float = 15.0


@dataclass(frozen=True, kw_only=True)
class DriveFile:
    """A file's metadata. `sha256` is the checksum that Drive computed, None if Drive has none."""

    id: str
    size: int
    sha256: str | None
    trashed: bool


@dataclass(frozen=True, kw_only=True)
class About:
    """A Drive's owner, and the bytes used by everything in its space, including mail and photos.

    `total` is None if there is no limit.
    """

    owner: str
    used: int
    total: int | None


class DriveClient:
    """One person's Drive. Safe to share between threads.

    `on_trouble` receives a message about what a person must fix, or "" once it works again.
    """

    def __init__(
        self,
        login: DriveLogin,
        endpoint: str | None = None,
        *,
        on_trouble: Callable[[str], None] = lambda _: None,
        in_trouble: bool = False,
        retries: Retries | None = None,
    ) -> None:
        self._auth = GoogleAuth(
            settings_file="",
            settings={"client_config_backend": "file", "save_credentials": False, "oauth_scope": [SCOPE]},
            http_timeout=HTTP_TIMEOUT_S,
        )
        self._credentials = OAuth2Credentials(
            None, login.client_id, login.client_secret, login.refresh_token, None, login.token_uri, "trainhop"
        )
        self._auth.credentials = self._credentials
        self._root = f"{endpoint or 'https://www.googleapis.com'}/"
        service = discovery.build_from_document(_document(self._root), http=httplib2.Http())
        self._files, self._about = service.files(), service.about()  # creating either of them costs more than a request

        self._retries, self._on_trouble = retries or Retries(), on_trouble
        self._in_trouble = in_trouble
        self._connections: collections.deque[httplib2.Http] = collections.deque()
        self._ids: collections.deque[str] = collections.deque()
        self._closed, self._silent_until = False, float("-inf")

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        while self._connections:
            self._connections.pop().close()

    # --- calls ---

    def new_id(self) -> str:
        """An id for a new file. Creating a file twice under one id creates it once."""
        with contextlib.suppress(IndexError):
            return self._ids.popleft()
        made = self._run(self._files.generateIds(maxResults=IDS_AT_ONCE, space="drive"))["ids"]
        self._ids.extend(made[1:])
        return made[0]

    def make_folder(self, ident: str, title: str, parent: str) -> None:
        """Create the folder if it is missing. Raises `GoneError` if the parent is missing."""
        body = {"id": ident, "title": title, "mimeType": FOLDER, "parents": [{"id": parent}]}
        with contextlib.suppress(AlreadyThereError):
            self._run(self._files.insert(body=body, fields="id"))

    def open_session(self, ident: str, title: str, parent: str, key: str) -> str:
        """The URL of a resumable upload. Raises `AlreadyThereError`, or `GoneError` if the parent is missing."""
        body: dict[str, Any] = {"id": ident, "title": title, "parents": [{"id": parent}]}
        if len(PROPERTY + key) <= _MAX_PROPERTY:
            body["properties"] = [{"key": PROPERTY, "value": key, "visibility": "PRIVATE"}]
        headers = {"Content-Type": "application/json; charset=UTF-8", "X-Upload-Content-Type": _kind(key)}

        def ask(connection: httplib2.Http) -> str:
            url = f"{self._root}upload/drive/v2/files?uploadType=resumable&supportsAllDrives=true"
            answer, content = connection.request(url, "POST", body=json.dumps(body), headers=headers)
            if answer.status != 200:
                raise HttpError(answer, content)
            if "location" not in answer:
                raise AgainError("Google Drive opened no upload session (is this address Google Drive?)")
            return answer["location"]

        return self._repeat(ask)

    def info(self, ident: str) -> DriveFile:
        """Current metadata. Raises `GoneError`."""
        resource = self._run(self._files.get(fileId=ident, fields=_FILE, supportsAllDrives=True))
        return _as_file(resource)

    def content(self, ident: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (excluded), complete. Raises `GoneError`."""
        request = self._files.get_media(fileId=ident, supportsAllDrives=True)
        request.headers["range"] = f"bytes={start}-{end - 1}"

        def ask(connection: httplib2.Http) -> bytes:
            data = request.execute(http=connection, num_retries=0)
            if len(data) != end - start:
                raise AgainError(f"Google Drive returned {len(data)} of {end - start} bytes")
            return data

        return self._repeat(ask)

    def replace(self, ident: str, key: str, content: bytes) -> None:
        """Replace the content of a small existing file. Raises `GoneError`."""
        headers = {"Content-Type": _kind(key)}

        def ask(connection: httplib2.Http) -> None:
            url = f"{self._root}upload/drive/v2/files/{ident}?uploadType=media&supportsAllDrives=true"
            answer, text = connection.request(url, "PUT", body=content, headers=headers)
            if answer.status != 200:
                raise HttpError(answer, text)

        self._repeat(ask)

    def address(self, ident: str) -> str:
        """The URL of the file's metadata. The URLs that read and replace its content are derived from it."""
        return f"{self._root}drive/v2/files/{ident}"

    def delete(self, ident: str) -> None:
        """Delete permanently, because files in the trash still use space."""
        with contextlib.suppress(GoneError):
            self._run(self._files.delete(fileId=ident, supportsAllDrives=True))

    def untrash(self, ident: str) -> None:
        """Take it out of the trash, where Drive would delete it after 30 days."""
        with contextlib.suppress(GoneError):
            self._run(self._files.untrash(fileId=ident, fields="id"))

    def about(self) -> About:
        """The Drive's owner and its used space."""
        about = self._run(self._about.get(fields=_ABOUT))
        unlimited = about.get("quotaType") == "UNLIMITED" or "quotaBytesTotal" not in about
        return About(
            owner=about.get("user", {}).get("emailAddress", ""),
            used=int(about.get("quotaBytesUsedAggregate") or about["quotaBytesUsed"]),
            total=None if unlimited else int(about["quotaBytesTotal"]),
        )

    def bearer(self) -> dict[str, str]:
        """A valid `Authorization` header."""

        def ask(connection: httplib2.Http) -> dict[str, str]:
            return {"Authorization": f"Bearer {self._credentials.get_access_token(connection).access_token}"}

        return self._repeat(ask)

    # --- requests ---

    def _run(self, request: HttpRequest) -> Any:
        def ask(connection: httplib2.Http) -> Any:
            result = request.execute(http=connection, num_retries=0)
            if result and not isinstance(result, dict):
                raise ValueError(result)
            return result

        return self._repeat(ask)

    def _repeat(self, ask: Callable[[httplib2.Http], Any]) -> Any:
        is_silent = time.monotonic() < self._silent_until
        try:
            for attempt in stamina.retry_context(
                on=_wait,
                attempts=1 if is_silent else self._retries.attempts,
                timeout=self._retries.within_s,
                wait_initial=self._retries.first_s,
                wait_max=self._retries.longest_s,
                wait_jitter=self._retries.jitter_s,
            ):
                with attempt:
                    answer = self._once(ask)
        except SignInError as error:
            self._in_trouble = True
            self._on_trouble(str(error))
            raise
        except AgainError as error:
            if not is_silent:  # a single failure among the attempts is not significant
                self._silent_until = time.monotonic() + max(self._retries.silent_s, error.after_s)
            raise
        self._silent_until = float("-inf")
        if self._in_trouble:
            self._in_trouble = False
            self._on_trouble("")
        return answer

    def _once(self, ask: Callable[[httplib2.Http], Any]) -> Any:
        with self._connection() as connection, _translated(self._credentials):
            return ask(connection)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[httplib2.Http]:
        try:
            connection = self._connections.pop()
        except IndexError:
            connection = self._auth.Get_Http_Object()
        try:
            yield connection
        except BaseException:
            connection.close()  # this session must not read the rest of the response

            raise
        if self._closed:
            connection.close()
        else:
            self._connections.append(connection)


def _kind(key: str) -> str:
    return NOTEBOOK if key.endswith(".ipynb") else "application/octet-stream"


def _as_file(resource: dict[str, Any]) -> DriveFile:
    """A file resource of API v2."""
    return DriveFile(
        id=resource["id"],
        size=int(resource.get("fileSize", 0)),
        sha256=resource.get("sha256Checksum"),
        trashed=bool(resource.get("labels", {}).get("trashed")),
    )


def _document(root: str) -> dict[str, Any]:
    text = discovery_cache.get_static_doc("drive", "v2")
    assert text is not None
    document = json.loads(text)
    document["rootUrl"] = root
    document.pop("mtlsRootUrl", None)
    return document


def _wait(error: Exception) -> bool | float:
    if not isinstance(error, AgainError):
        return False
    return error.after_s or True


@contextlib.contextmanager
def _translated(credentials: OAuth2Credentials) -> Iterator[None]:
    """Translate errors of four libraries into ours.

    An upload's URL grants access and must not appear in a message. Nor must credentials that an answer repeats.
    """
    try:
        yield
    except HttpError as error:
        content = error.content
        for secret in (credentials.client_secret, credentials.refresh_token, credentials.access_token):
            content = content.replace(secret.encode(), b"***") if secret else content
        raise meaning(error.resp.status, content, error.resp.get("retry-after", "")) from None
    except HttpAccessTokenRefreshError as error:
        raise refused_refresh(int(error.status or 400), str(error)) from None
    except (OSError, httplib2.HttpLib2Error, http.client.HTTPException) as error:
        raise AgainError(f"could not reach Google Drive ({type(error).__name__})") from None
    except (ValueError, KeyError):
        raise AgainError("the answer is not from Google Drive (is there a proxy?)") from None
