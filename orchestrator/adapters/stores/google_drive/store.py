"""Checkpoints in a person's Google Drive.

File names in Drive are not unique, and a new file is not found by its name at once. So every key is tied to an id
before the file is created under that id. Creating a file twice has the same effect as creating it once. If a response
was lost, the file is found by its id. A file appears complete or not at all, and its checksum is the one that Drive
computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

try:
    from orchestrator.adapters.stores.google_drive.client import DriveClient, DriveFile
    from orchestrator.adapters.stores.google_drive.sign_in import GoogleSignIn
except ModuleNotFoundError as missing:
    raise ImportError(f"Google Drive needs `pip install 'trainhop[drive]'` ({missing})") from missing
from orchestrator.adapters.stores.google_drive.errors import AlreadyThereError, GoneError
from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.adapters.stores.google_drive.settings import EDITOR_ADDRESS, NOTEBOOK_EDITOR, TEXTS, DriveSettings
from orchestrator.adapters.stores.keys import checked
from orchestrator.ports.stores import (
    Grant,
    GrantKind,
    ObjectInfo,
    ObjectMissing,
    StoreEnv,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Usage,
)
from worker.shared import resumable_upload

READ_BYTES = 8 << 20
TRIES = 3
ROOT = "/"
T = TypeVar("T")


class DriveStore:
    """Implements `ports.Store` in one folder of a Drive, which no other installation uses."""

    name = "drive"
    settings = DriveSettings
    texts = TEXTS
    sign_in = GoogleSignIn
    notebook_editor = NOTEBOOK_EDITOR

    def __init__(
        self, env: StoreEnv, *, client: DriveClient | None = None, patience: resumable_upload.Patience | None = None
    ) -> None:
        self._client = client or DriveClient(
            read_login(env.credentials, env.endpoint),
            env.endpoint,
            on_trouble=env.report_problem,
            in_trouble=env.has_problem,
        )
        self._ids, self._links, self._title = env.ids, env.links, str(env.config["folder"])
        self._patience, self._making = patience, threading.RLock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def owner(self) -> str:
        """The email address of the Drive's owner."""
        return self._client.about().owner

    # --- grants ---

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        """An upload session for this one file. A machine gets no other access."""
        ident = self._ids.get(checked(key)) or self._ids.claim(key, self._client.new_id())
        return Grant(key=key, kind=kind, url=self._session(key, ident), resumable=True)

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        """Drive needs a credential for every download, so workers download through this server."""
        return self._links.download(checked(key), kind, self.name, sha256=sha256, size=size)

    def _session(self, key: str, ident: str) -> str:
        title = key.removeprefix(_folder_of(key)).replace("/", "-")
        return self._within(_folder_of(key), lambda folder: self._client.open_session(ident, title, folder, key))

    # --- folders ---

    def _within(self, folder: str, act: Callable[[str], T]) -> T:
        """Call an operation in a folder. The folder is created again if a person has deleted it."""
        for _ in range(TRIES):
            ident = self._folder(folder)
            try:
                return act(ident)
            except GoneError:
                self._ids.forget(folder, ident)
        raise StoreUnavailable(f"the folder {folder} in Google Drive keeps disappearing")

    def _folder(self, folder: str) -> str:
        with self._making:  # the id is registered before its folder exists, and other threads must find the folder
            known = self._ids.get(folder)
            if known is not None:
                return known
            ident = self._ids.claim(folder, self._client.new_id())
            if folder == ROOT:
                self._client.make_folder(ident, self._title, "root")
            else:
                title = folder.strip("/").rpartition("/")[2]
                self._within(ROOT, lambda parent: self._client.make_folder(ident, title, parent))
            return ident

    # --- objects ---

    def _ident(self, key: str) -> str:
        ident = self._ids.get(checked(key))
        if ident is None:
            raise ObjectMissing(f"The file {key} is not in the store.")
        return ident

    @contextlib.contextmanager
    def _named(self, key: str) -> Iterator[None]:
        try:
            yield
        except GoneError as error:
            raise ObjectMissing(
                f"{key} is not in Google Drive: its upload never finished, or it was deleted there"
            ) from error

    def _found(self, key: str) -> DriveFile:
        """Metadata by id. A file that a job still needs is restored from the trash, even if a person has moved it."""
        ident = self._ident(key)
        with self._named(key):
            found = self._client.info(ident)
        if found.trashed:
            for each in (self._ids.get(ROOT), self._ids.get(_folder_of(key)), ident):
                if each is not None:
                    with contextlib.suppress(StoreError):
                        self._client.untrash(each)
        return found

    def stat(self, key: str) -> ObjectInfo:
        return self._info(key, self._found(key))

    def _info(self, key: str, found: DriveFile) -> ObjectInfo:
        sha256 = found.sha256
        if sha256 is None:
            digest = hashlib.sha256()
            for chunk in self._chunks(key, found):
                digest.update(chunk)
            sha256 = digest.hexdigest()
        return ObjectInfo(key=key, size=found.size, sha256=sha256)

    def head(self, key: str, size: int) -> bytes:
        found = self._found(key)
        with self._named(key):
            return self._client.content(found.id, 0, min(size, found.size)) if size and found.size else b""

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Read in ranges and repeat each range until it is complete.

        Raises `StoreUnavailable` at the end if the checksum differs. A part of a file has no checksum.
        """
        found = self._found(key)
        digest = hashlib.sha256()
        for chunk in self._chunks(key, found, start):
            digest.update(chunk)
            yield chunk
        if found.sha256 is not None and start == 0 and digest.hexdigest() != found.sha256:
            raise StoreUnavailable(f"the download of {key} from Google Drive was damaged. Try again")

    def _chunks(self, key: str, found: DriveFile, first: int = 0) -> Iterator[bytes]:
        for start in range(first, found.size, READ_BYTES):
            end = min(start + READ_BYTES, found.size)
            with self._named(key):
                chunk = self._client.content(found.id, start, end)
            yield chunk

    def put(self, key: str, source: Path) -> ObjectInfo:
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        wanted = ObjectInfo(key=key, size=source.stat().st_size, sha256=sha256)
        refused, problem = "", ""
        for _ in range(TRIES):
            try:
                if self.stat(key) == wanted:
                    return wanted
                self.delete(key)
            except ObjectMissing:
                if refused:  # the id is used but the file is missing: it was deleted, and an id cannot be used again
                    self._ids.forget(key, refused)
            ident = self._ids.get(key) or self._ids.claim(checked(key), self._client.new_id())
            refused, problem = "", f"{key} arrived damaged in Google Drive {TRIES} times"
            try:
                self._send(key, ident, source)
            except (AlreadyThereError, resumable_upload.SessionGone) as error:
                refused, problem = ident, f"{key} could not be written to Google Drive: {error}"
        with contextlib.suppress(ObjectMissing):
            if self.stat(key) == wanted:
                return wanted
        raise StoreUnavailable(problem)

    def _send(self, key: str, ident: str, source: Path) -> None:
        """Upload the file. Raises `SessionGone` if another session may succeed."""
        url = self._session(key, ident)
        try:
            resumable_upload.send(url, source, headers=self._client.bearer, patience=self._patience)
        except resumable_upload.SessionFull as error:
            raise StoreFull(str(error)) from None
        except resumable_upload.SessionAway as error:
            raise StoreUnavailable(f"{key} could not be written to Google Drive: {error}") from None
        except OSError as error:
            raise StoreError(f"{source.name} cannot be read: {error.strerror}") from error

    def delete(self, key: str) -> None:
        ident = self._ids.get(checked(key))
        if ident is not None:
            self._client.delete(ident)
            self._ids.forget(key, ident)

    def keys(self, prefix: str) -> list[str]:
        return self._ids.keys(prefix)

    # --- for a notebook of the Drive's owner ---

    def address(self, key: str) -> str:
        return f"{self._client.address(self._ident(key))}?alt=media"

    def notebook_link(self, key: str) -> str:
        return f"{EDITOR_ADDRESS}{self._found(key).id}"

    def read_document(self, key: str) -> str:
        return b"".join(self.read(key)).decode(errors="replace")

    def write_document(self, key: str, text: str) -> None:
        ident = self._ids.get(checked(key))
        if ident is not None:
            try:
                self._client.replace(ident, key, text.encode())
                return
            except GoneError:
                self._ids.forget(key, ident)  # a person has deleted it, and an id cannot be used again

        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            self.put(key, Path(file.name))

    def usage(self) -> Usage:
        """Space of the whole account, because its owner's other files, mail and photos use it too."""
        about = self._client.about()
        return Usage(used=about.used, free=None if about.total is None else max(0, about.total - about.used))


def _folder_of(key: str) -> str:
    """The folder of a key: one for each job, and one for each other type of file."""
    parts = key.split("/")
    depth = 2 if parts[0] == "jobs" and len(parts) > 2 else 1 if len(parts) > 1 else 0
    return "".join(f"{part}/" for part in parts[:depth]) or ROOT
