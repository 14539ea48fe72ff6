"""Checkpoints in a person's Google Drive.

Names mean nothing there (they are neither unique nor found at once), so every key is tied to an id before anything is
created under it: creating twice is creating once, and whatever a lost answer hid is found under its id. A file appears
whole or not at all, and what counts is the checksum that Drive itself computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.adapters.stores.google_drive.client import DriveClient, DriveFile
from orchestrator.adapters.stores.google_drive.errors import AlreadyThereError, GoneError
from orchestrator.adapters.stores.keys import checked
from orchestrator.adapters.stores.signed_links import BlobLinks
from orchestrator.ports.providers import ObjectInfo, ObjectMissing, StoreError, StoreFull, StoreUnavailable, Usage
from worker.shared import resumable_upload
from worker.shared.messages import Grant, GrantKind

READ_BYTES = 8 << 20
TRIES = 3
ROOT = "/"
COLAB = "https://colab.research.google.com/drive/"
T = TypeVar("T")


class Ids(Protocol):
    """Which id a key has; folders have keys that end in a slash."""

    def get(self, key: str) -> str | None: ...
    def claim(self, key: str, ident: str) -> str:
        """Tie the id to the key for good; returns the one that came first."""
        ...

    def forget(self, key: str, ident: str) -> None:
        """Untie them, if they still belong together."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """Keys in this folder that have an id."""
        ...


class DriveStore:
    """Implements `ports.Store` in one folder of a Drive. `title` names that folder, which no other installation uses."""

    name = "drive"

    def __init__(
        self,
        client: DriveClient,
        ids: Ids,
        links: BlobLinks,
        title: str,
        *,
        patience: resumable_upload.Patience | None = None,
    ) -> None:
        self._client, self._ids, self._links, self._title = client, ids, links, title
        self._patience, self._making = patience, threading.RLock()

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def owner(self) -> str:
        """The address of the person whose Drive it is."""
        return self._client.about().owner

    # --- grants ---

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        """An upload session: it leads to this one file and is all that a machine gets."""
        ident = self._ids.get(checked(key)) or self._ids.claim(key, self._client.new_id())
        return Grant(key=key, kind=kind, url=self._session(key, ident), resumable=True)

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        """Drive gives nothing without a credential, so this server reads it out."""
        return self._links.download(checked(key), kind, self.name, sha256=sha256, size=size)

    def _session(self, key: str, ident: str) -> str:
        title = key.removeprefix(_folder_of(key)).replace("/", "-")
        return self._within(_folder_of(key), lambda folder: self._client.open_session(ident, title, folder, key))

    # --- folders ---

    def _within(self, folder: str, act: Callable[[str], T]) -> T:
        """Do something in a folder, which is made again if somebody has deleted it."""
        for _ in range(TRIES):
            ident = self._folder(folder)
            try:
                return act(ident)
            except GoneError:
                self._ids.forget(folder, ident)
        raise StoreUnavailable(f"the folder {folder} in Google Drive vanishes again and again")

    def _folder(self, folder: str) -> str:
        with self._making:  # an id is known before its folder is there, and nobody may find that missing
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
            raise ObjectMissing(f"{key} is not in the store")
        return ident

    @contextlib.contextmanager
    def _named(self, key: str) -> Iterator[None]:
        try:
            yield
        except GoneError as error:
            raise ObjectMissing(
                f"{key} is not in Google Drive: it was never written whole, or somebody has deleted it there"
            ) from error

    def _found(self, key: str) -> DriveFile:
        """Metadata by id. What a job still needs is taken out of the trash, wherever a person has put it."""
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
        """In ranges, each repeated until it has come whole; raises `StoreUnavailable` at the end if the sum is another.

        A part of a file has no sum to compare.
        """
        found = self._found(key)
        digest = hashlib.sha256()
        for chunk in self._chunks(key, found, start):
            digest.update(chunk)
            yield chunk
        if found.sha256 is not None and start == 0 and digest.hexdigest() != found.sha256:
            raise StoreUnavailable(f"{key} was damaged on its way from Google Drive; read it again")

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
                if refused:  # taken, yet nothing is there: it was deleted, and an id is not given out again
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
        """Raises `SessionGone` if another session may do better."""
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
        return f"{COLAB}{self._found(key).id}"

    def read_document(self, key: str) -> str:
        return b"".join(self.read(key)).decode(errors="replace")

    def write_document(self, key: str, text: str) -> None:
        ident = self._ids.get(checked(key))
        if ident is not None:
            try:
                self._client.replace(ident, key, text.encode())
                return
            except GoneError:
                self._ids.forget(key, ident)  # somebody has deleted it, and an id is not given out again
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            self.put(key, Path(file.name))

    def usage(self) -> Usage:
        """Of the whole account: its owner's other files, mail and photos take space too."""
        about = self._client.about()
        return Usage(used=about.used, free=None if about.total is None else max(0, about.total - about.used))


def _folder_of(key: str) -> str:
    """One folder per job, one for each other kind of thing."""
    parts = key.split("/")
    depth = 2 if parts[0] == "jobs" and len(parts) > 2 else 1 if len(parts) > 1 else 0
    return "".join(f"{part}/" for part in parts[:depth]) or ROOT
