"""What lies in the emulated Drive: files with real bytes on disk, upload sessions, tokens. Survives a restart."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = "application/vnd.google-apps.folder"
GRANULE = 256 * 1024
"""Uploads come in multiples of this, and what is kept of a broken one is such a multiple."""


class Problem(Exception):
    """An error in Google's own shape."""

    def __init__(self, status: int, reason: str, message: str = "", domain: str = "global") -> None:
        super().__init__(message or reason)
        self.status, self.reason, self.domain = status, reason, domain


@dataclass
class File:
    id: str
    title: str
    mime: str
    parents: list[str]
    properties: list[dict[str, str]] = field(default_factory=list)
    size: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    revision: str = ""
    version: int = 1
    trashed: bool = False
    created: float = 0.0
    modified: float = 0.0
    planted: bool = False

    @property
    def is_folder(self) -> bool:
        return self.mime == FOLDER


@dataclass
class UploadSession:
    id: str
    metadata: dict[str, Any]
    size: int | None
    updates: str | None = None
    received: int = 0
    result: str | None = None


class Contents:
    """Files and sessions under one folder of this disk; every method is safe to call from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "sessions").mkdir(exist_ok=True)
        self.lock = threading.RLock()
        self.files: dict[str, File] = {}
        self.sessions: dict[str, UploadSession] = {}
        self.reserved: set[str] = set()
        self.dead: set[str] = set()
        self.children: dict[str, set[str]] = {}
        self.hidden: dict[str, int] = {}
        self.limit: int | None = 15 << 30
        self.lag = 0
        self.address = ""
        self.used = 0
        self.others = 0  # bytes of the person's mail and photos, which share the limit
        self.root = "root-of-this-drive"
        self._load()
        self._journal = (folder / "journal.jsonl").open("a", buffering=1)
        if self.root not in self.files:
            self._keep(File(self.root, "My Drive", FOLDER, []))

    def close(self) -> None:
        self._journal.close()

    def _load(self) -> None:
        journal = self.folder / "journal.jsonl"
        for line in journal.read_text().splitlines() if journal.exists() else ():
            entry = json.loads(line)
            if "file" in entry:
                self._index(File(**entry["file"]))
            elif "session" in entry:
                session = UploadSession(**entry["session"])
                self.sessions[session.id] = session
            else:
                self._unindex(entry["gone"])
                self.dead.add(entry["gone"])

    def _write(self, **entry: Any) -> None:
        self._journal.write(json.dumps(entry) + "\n")

    def _index(self, file: File) -> None:
        self._unindex(file.id)
        self.files[file.id] = file
        self.used += file.size
        for parent in file.parents:
            self.children.setdefault(parent, set()).add(file.id)

    def _unindex(self, ident: str) -> None:
        old = self.files.pop(ident, None)
        if old is not None:
            self.used -= old.size
            for parent in old.parents:
                self.children.get(parent, set()).discard(ident)

    def _keep(self, file: File) -> File:
        self._index(file)
        self._write(file=asdict(file))
        return file

    def resource(self, file: File) -> dict[str, Any]:
        """A file as API v2 shows it."""
        return resource(file, self.address)

    # ids

    def new_ids(self, count: int) -> list[str]:
        with self.lock:
            made = [secrets.token_urlsafe(24) for _ in range(count)]
            self.reserved.update(made)
            return made

    def _check_id(self, ident: str | None) -> str:
        if ident is None:
            return self.new_ids(1)[0]
        if ident in self.files or ident in self.dead:
            raise Problem(409, "fileIdInUse", "A file already exists with the provided ID.")
        if ident not in self.reserved:
            raise Problem(400, "invalid", "The provided file ID is not usable.")
        return ident

    # files

    def get(self, ident: str) -> File:
        with self.lock:
            found = self.files.get(self.root if ident == "root" else ident)
            if found is None:
                raise Problem(404, "notFound", f"File not found: {ident}")
            return found

    def blob(self, file: File) -> Path:
        return self.folder / "blobs" / file.id / file.revision

    def insert(self, metadata: dict[str, Any], content: Path | bytes | None = None, *, planted: bool = False) -> File:
        """A new file; raises `Problem` for a used id, a missing folder, a full Drive."""
        with self.lock:
            ident = self._check_id(metadata.get("id"))
            parents = [self.get(p["id"]).id for p in metadata.get("parents") or [{"id": "root"}]]
            now = time.time()
            file = File(
                id=ident,
                title=str(metadata.get("title", "Untitled")),
                mime=str(metadata.get("mimeType", "application/octet-stream")),
                parents=parents,
                properties=list(metadata.get("properties", ())),
                created=now,
                modified=now,
                trashed=any(self.files[p].trashed for p in parents),
                planted=planted,
            )
            if not file.is_folder:
                content = b"" if content is None else content
                self.require_space(content.stat().st_size if isinstance(content, Path) else len(content))
                self._fill(file, content)
            if self.lag:
                self.hidden[ident] = self.lag
            return self._keep(file)

    def _fill(self, file: File, content: Path | bytes) -> None:
        old, file.revision = self.blob(file), secrets.token_hex(6)
        target = self.blob(file)
        target.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            content.rename(target)
        else:
            target.write_bytes(content)
        if old.is_file():
            old.unlink()
        data = target.read_bytes()
        file.size = len(data)
        file.hashes = {name: hashlib.new(name, data).hexdigest() for name in ("md5", "sha1", "sha256")}

    def require_space(self, size: int) -> None:
        if self.limit is not None and size > 0 and self.used + self.others + size > self.limit:
            raise Problem(403, "storageQuotaExceeded", "The user's Drive storage quota has been exceeded.")

    def update(
        self, ident: str, changes: dict[str, Any], if_match: str | None = None, content: Path | bytes | None = None
    ) -> File:
        """Change metadata, content or both; 412 if the etag is another one by now."""
        with self.lock:
            file = self.get(ident)
            if if_match not in (None, "*", etag(file)):
                raise Problem(412, "conditionNotMet", "Precondition Failed")
            parents = [self.get(p["id"]).id for p in changes["parents"]] if "parents" in changes else file.parents
            size = content.stat().st_size if isinstance(content, Path) else len(content or b"")
            self.require_space(size - file.size)
            self._unindex(file.id)
            if content is not None:
                self._fill(file, content)
            file.title = str(changes.get("title", file.title))
            file.mime = str(changes.get("mimeType", file.mime))
            file.properties = list(changes.get("properties", file.properties))
            file.parents = parents
            file.version += 1
            file.modified = time.time()
            return self._keep(file)

    def mark(self, ident: str, *, trashed: bool) -> File:
        """To the trash with it and all below, or back."""
        with self.lock:
            file = self.get(ident)
            for each in self._below(file.id):
                each.trashed, each.version = trashed, each.version + 1
                self._keep(each)
            return file

    def trashed(self) -> list[File]:
        with self.lock:
            return [f for f in self.files.values() if f.trashed]

    def delete(self, ident: str) -> None:
        """For ever, with all below."""
        with self.lock:
            for each in self._below(self.get(ident).id):
                self._unindex(each.id)
                self.dead.add(each.id)
                self._write(gone=each.id)
                if not each.is_folder:
                    self.blob(each).unlink(missing_ok=True)
                    self.blob(each).parent.rmdir()

    def _below(self, ident: str) -> list[File]:
        found = [self.files[ident]]
        for child in tuple(self.children.get(ident, ())):
            found += self._below(child)
        return found

    def search(self, *, parent: str | None, by_name: bool) -> list[File]:
        """Candidates of a query, newest last. A search that does not name a folder sees new files late."""
        with self.lock:
            if parent is not None:
                idents: Iterable[str] = self.children.get(self.root if parent == "root" else parent, ())
            else:
                idents = self.files.keys() - {self.root}
            if not by_name:
                return sorted((self.files[i] for i in idents), key=lambda f: (f.created, f.id))
            late = {i for i, n in self.hidden.items() if n > 0}
            self.hidden = {i: n - 1 for i, n in self.hidden.items() if n > 1}
            return sorted((self.files[i] for i in idents if i not in late), key=lambda f: (f.created, f.id))

    # sessions

    def open_session(self, metadata: dict[str, Any], size: int | None, updates: str | None = None) -> UploadSession:
        with self.lock:
            if updates is None:
                if "id" in metadata:
                    self._check_id(metadata["id"])
                for parent in metadata.get("parents") or ():
                    self.get(parent["id"])
            else:
                self.get(updates)
            self.require_space(size or 0)
            session = UploadSession(secrets.token_urlsafe(30), metadata, size, updates)
            self.sessions[session.id] = session
            self._write(session=asdict(session))
            return session

    def session(self, ident: str) -> UploadSession:
        with self.lock:
            found = self.sessions.get(ident)
            if found is None:
                raise Problem(404, "notFound", "Upload session not found")
            return found

    def spool(self, session: UploadSession) -> Path:
        return self.folder / "sessions" / session.id

    def received(self, session: UploadSession, count: int) -> None:
        with self.lock:
            session.received = count
            self._write(session=asdict(session))

    def finish(self, session: UploadSession) -> File:
        """All bytes are here: the file appears, whole, at once."""
        with self.lock:
            spool = self.spool(session)
            if not spool.exists():
                spool.touch()
            if session.updates is None:
                file = self.insert(session.metadata, spool)
            else:
                file = self.update(session.updates, session.metadata, content=spool)
            session.result = file.id
            self._write(session=asdict(session))
            return file


def etag(file: File) -> str:
    """Changes with every change of content or metadata."""
    return f'"{file.id[:8]}/{file.version}"'


def resource(file: File, address: str) -> dict[str, Any]:
    """A file as API v2 shows it, from a service at this address."""
    shown: dict[str, Any] = {
        "kind": "drive#file",
        "id": file.id,
        "etag": etag(file),
        "title": file.title,
        "mimeType": file.mime,
        "labels": {"trashed": file.trashed, "starred": False, "viewed": True},
        "parents": [{"kind": "drive#parentReference", "id": p} for p in file.parents],
        "properties": [{"kind": "drive#property", **p} for p in file.properties],
        "version": str(file.version),
        "createdDate": datetime.fromtimestamp(file.created, UTC).isoformat(),
        "modifiedDate": datetime.fromtimestamp(file.modified, UTC).isoformat(),
    }
    if not file.is_folder:
        shown |= {
            "downloadUrl": f"{address}/drive/v2/files/{file.id}?alt=media",
            "fileSize": str(file.size),
            "quotaBytesUsed": str(file.size),
            "md5Checksum": file.hashes["md5"],
            "sha1Checksum": file.hashes["sha1"],
            "sha256Checksum": file.hashes["sha256"],
            "headRevisionId": file.revision,
        }
    return shown
