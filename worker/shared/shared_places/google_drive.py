"""A folder of Google Drive as a shared place, through API v2 with the notebook's own sign-in.

Version 2 because only it has compare-and-swap: `If-Match` on an upload that is one request. Names in Drive are not
unique and searches by name are late. So files are found by listing a folder, and of several files or folders with one
name the oldest counts. Whoever creates one waits `SETTLE_S` before looking which is the oldest.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import httpx

from worker.shared import resumable_upload
from worker.shared.certificates import certificates
from worker.shared.loopback import is_loopback
from worker.shared.shared_places.errors import (
    BusyError,
    FullError,
    LostError,
    MissingError,
    PlaceError,
    RefusedError,
    UnknownError,
)
from worker.shared.shared_places.place import MAX_DOC_BYTES, READ_BYTES, Blob, digest

ADDRESS = "https://www.googleapis.com"
FOLDER = "application/vnd.google-apps.folder"
DOCUMENTS = "documents/"
SETTLE_S = 5.0
SWAP_TRIES = 4
TIMEOUT_S = 60.0
MAX_PAGES = 100
_BOUNDARY = "trainhop-document"
_FIELDS = "id,title,etag,createdDate,fileSize,sha256Checksum"


class _TakenError(PlaceError):
    """The id is in use: the file was created by an earlier attempt."""


class DriveFolder:
    """A place in the folder of this name, which is created if it is missing. `token` returns a valid access token."""

    beat_every_s = 60.0
    patience_s = 240.0

    def __init__(
        self,
        folder: str,
        token: Callable[[], str],
        *,
        endpoint: str | None = None,
        client: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.address = f"drive://{folder}"
        self._title, self._token, self._sleep, self._settle_s = folder, token, sleep, settle_s
        self._root = endpoint or ADDRESS
        is_local = is_loopback(self._root)
        self._client = client or httpx.Client(timeout=TIMEOUT_S, verify=certificates(), trust_env=not is_local)
        self._ids: dict[str, str] = {}
        self._new_ids: dict[str, str] = {}
        self._known: dict[str, tuple[str, bytes]] = {}
        self._folder_id = ""

    def close(self) -> None:
        self._client.close()

    # --- documents ---

    def read_doc(self, name: str) -> bytes | None:
        try:
            return self._newest(name)[1]
        except MissingError:
            self._ids.pop(DOCUMENTS + name, None)
            return None

    def _newest(self, name: str) -> tuple[str, bytes]:
        """Etag and content. The etag is read first: if it still holds at a write, so does the content."""
        ident = self._settled(DOCUMENTS + name)
        etag = self._call("GET", f"files/{ident}", params={"fields": "etag"}).json()["etag"]
        content = self._call("GET", f"files/{ident}", params={"alt": "media"}).content[:MAX_DOC_BYTES]
        return etag, content

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        lost = LostError(f"{name} in {self.address} was changed by another session")
        if expected is None:
            if not self._create(name, new):
                raise lost
            return
        etag, content = self._known.pop(name, ("", b""))
        for _ in range(SWAP_TRIES):
            if content != expected:
                etag, content = self._newest(name)
            if content != expected:
                raise lost
            try:
                self._known[name] = (self._write(self._settled(DOCUMENTS + name), etag, new), new)
            except LostError:  # maybe only the title was changed
                content = b""
                continue
            return
        raise BusyError(f"{name} in {self.address} changes all the time")

    def _write(self, ident: str, etag: str, content: bytes) -> str:
        """The new etag. Raises `LostError` if the file has another one than this."""
        answer = self._call(
            "PUT",
            f"files/{ident}",
            upload=True,
            params={"uploadType": "media", "fields": "etag"},
            content=content,
            headers={"If-Match": etag, "Content-Type": "application/json"},
        )
        return answer.json()["etag"]

    def _create(self, name: str, content: bytes) -> bool:
        """Create a document. False if another session was first."""
        title = DOCUMENTS + name
        if title in self._ids or (self._files(title) and title not in self._new_ids):
            return False
        ident = self._new_id(title)
        about = json.dumps({"id": ident, "title": title, "parents": [{"id": self._folder()}]}).encode()
        parts = [b"Content-Type: application/json\r\n\r\n" + about, b"Content-Type: application/json\r\n\r\n" + content]
        body = b"".join(b"--%s\r\n%s\r\n" % (_BOUNDARY.encode(), part) for part in parts)
        with contextlib.suppress(_TakenError):
            self._call(
                "POST",
                "files",
                upload=True,
                params={"uploadType": "multipart", "fields": "id"},
                content=body + b"--%s--" % _BOUNDARY.encode(),
                headers={"Content-Type": f"multipart/related; boundary={_BOUNDARY}"},
            )
        try:
            settled = self._settled(title)
        except MissingError:
            raise self._not_listed(title) from None
        if settled != ident:
            self._remove(ident)
        del self._new_ids[title]
        return self._newest(name)[1] == content

    def _settled(self, title: str) -> str:
        """The id of a document. Raises `MissingError`."""
        if title not in self._ids:
            if self._files(title):
                self._sleep(self._settle_s)
            files = self._files(title)
            if not files:
                raise MissingError(f"{title} is missing in {self.address}")
            self._ids[title] = files[0]["id"]
        return self._ids[title]

    # --- folders ---

    def _folder(self) -> str:
        """The id of the oldest folder with the place's name. Raises `RefusedError` if two of them contain a run."""
        if not self._folder_id:
            if not self._folders():
                about = {"id": self._new_id(FOLDER), "title": self._title, "mimeType": FOLDER}
                with contextlib.suppress(_TakenError):
                    self._call("POST", "files", json=about, params={"fields": "id"})
                self._sleep(self._settle_s)
            folders = self._folders()
            if not folders:
                raise self._not_listed(self._title)
            first, *others = [folder["id"] for folder in folders]
            if any(self._listed(f"'{other}' in parents and trashed=false") for other in others):
                raise RefusedError(
                    f"Google Drive has two folders called {self._title} with files. Rename or delete one of them"
                )
            self._folder_id = first
        return self._folder_id

    def _not_listed(self, title: str) -> UnknownError:
        """What has just been created is not found. The same call finds it later."""
        return UnknownError(f"{self.address} does not list the new {title} yet")

    def _folders(self) -> list[dict[str, Any]]:
        found = self._listed(f"'root' in parents and trashed=false and mimeType = '{FOLDER}'")
        return [folder for folder in found if folder["title"] == self._title]

    def _files(self, title: str = "") -> list[dict[str, Any]]:
        """Files with this title, or all files, oldest first."""
        found = self._listed(f"'{self._folder()}' in parents and trashed=false")
        return [file for file in found if title in ("", file["title"])]

    def _listed(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        params = {"q": query, "maxResults": "1000", "fields": f"items({_FIELDS}),nextPageToken,incompleteSearch"}
        for _ in range(MAX_PAGES):
            page = self._call("GET", "files", params=params).json()
            if page.get("incompleteSearch"):
                raise UnknownError("Google Drive did not list all files")
            found += page["items"]
            if not (token := page.get("nextPageToken")):
                return sorted(found, key=lambda file: (file["createdDate"], file["id"]))
            params["pageToken"] = token
        raise RefusedError(f"{self.address} has too many files")

    # --- files ---

    def put(self, name: str, source: Path) -> None:
        if self._files(name):
            return
        about = {"id": self._new_id(name), "title": name, "parents": [{"id": self._folder()}]}
        try:
            opened = self._call("POST", "files", upload=True, params={"uploadType": "resumable"}, json=about)
        except _TakenError:
            self._ids[name] = self._new_ids[name]
            return
        try:
            patience = resumable_upload.Patience(sleep=self._sleep)
            made = resumable_upload.send(opened.headers["location"], source, headers=self._bearer, patience=patience)
        except resumable_upload.SessionFull as error:
            raise FullError(f"{self.address} is full: {error}. Empty the trash or delete files") from None
        except resumable_upload.SessionError as error:
            raise UnknownError(f"the upload to {self.address} ended early: {error}") from None
        self._ids[name] = made["id"]

    def sha256(self, name: str) -> str:
        """As Google computed it from the stored bytes."""
        found = self._call("GET", f"files/{self._ident(name)}", params={"fields": "sha256Checksum"}).json()
        return found.get("sha256Checksum") or digest(self, name)

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        ident = self._ident(name)
        size = int(self._call("GET", f"files/{ident}", params={"fields": "fileSize"}).json()["fileSize"])
        stop = size if end is None else min(end, size)
        for at in range(start, stop, READ_BYTES):
            until = min(at + READ_BYTES, stop)
            headers = {"Range": f"bytes={at}-{until - 1}"}
            piece = self._call("GET", f"files/{ident}", params={"alt": "media"}, headers=headers).content
            if len(piece) != until - at:
                raise UnknownError(f"Google Drive returned {len(piece)} of {until - at} bytes")
            yield piece

    def _ident(self, name: str) -> str:
        if name not in self._ids:
            files = self._files(name)
            if not files:
                raise MissingError(f"{name} is missing in {self.address}")
            self._ids[name] = files[0]["id"]
        return self._ids[name]

    def blobs(self) -> list[Blob]:
        found = [file for file in self._files() if not file["title"].startswith(DOCUMENTS)]
        return [Blob(name=file["title"], size=int(file.get("fileSize", 0))) for file in found]

    def delete(self, names: Collection[str]) -> None:
        for file in self._files():
            if file["title"] in names:
                self._remove(file["id"])
                self._ids.pop(file["title"], None)

    def _remove(self, ident: str) -> None:
        """Permanently, because files in the trash use space."""
        try:
            self._call("DELETE", f"files/{ident}")
        except MissingError:
            return

    # --- requests ---

    def _new_id(self, key: str) -> str:
        """An id for a new file. A repeated attempt uses it again, so that it creates the file once."""
        if key not in self._new_ids:
            found = self._call("GET", "files/generateIds", params={"maxResults": "1", "space": "drive"})
            self._new_ids[key] = found.json()["ids"][0]
        return self._new_ids[key]

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}"}

    def _call(
        self,
        method: str,
        path: str,
        *,
        upload: bool = False,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        try:
            answer = self._client.request(
                method,
                f"{self._root}{'/upload' if upload else ''}/drive/v2/{path}",
                params={"supportsAllDrives": "true", **(params or {})},
                headers={**self._bearer(), **(headers or {})},
                json=json,
                content=content,
            )
        except httpx.HTTPError as error:
            raise UnknownError(f"no answer from Google Drive ({type(error).__name__})") from None
        if not answer.is_success:
            raise self._meaning(answer)
        return answer

    def _meaning(self, answer: httpx.Response) -> PlaceError:
        status, reason = answer.status_code, resumable_upload.reason_of(answer)
        words = f"Google Drive answered {status} {reason}".rstrip()
        by_status: dict[int, type[PlaceError]] = {404: MissingError, 409: _TakenError, 412: LostError}
        if status in by_status:
            return by_status[status](words)
        if reason in resumable_upload.FULL:
            return FullError(f"{self.address} is full: empty the trash of Google Drive, or delete files")
        if status == 429 or reason in resumable_upload.SLOW_DOWN:
            wait = answer.headers.get("retry-after", "")
            return BusyError(words, float(wait) if wait.isdecimal() else 0.0)
        if status in (408, 425) or status >= 500:
            return UnknownError(words)
        if status in (401, 403):
            return RefusedError(f"Google Drive does not accept this sign-in ({reason or status}). Sign in again")
        return RefusedError(words)
