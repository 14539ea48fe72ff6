"""A store in a folder of the server's own disk."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.adapters.stores.keys import checked, is_key
from orchestrator.adapters.stores.signed_links import BlobLinks
from orchestrator.ports.providers import ObjectInfo, ObjectMissing, StoreError, StoreFull, Usage
from worker.shared.messages import Grant, GrantKind

CHUNK_BYTES = 1 << 20
ASIDE = ".incoming-"
BROKEN_OFF = f"{ASIDE}????????"
"""What `tempfile` makes of `ASIDE`: a write of this server. Names that workers write aside are longer."""


class LocalStore:
    """Implements `ports.Store` under one folder.

    A worker on this computer is granted a path; any other worker a URL of this server (`blob_url`) with a keyed header that
    is good for that one key and direction.
    """

    name = "local"

    def __init__(self, folder: Path, blob_url: Callable[[str], str], key: bytes) -> None:
        self.folder, self.links = folder, BlobLinks(blob_url, key)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where an object lies; raises `StoreError` for a key the server would not have made."""
        return self.folder / checked(key)

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        path = self.path(key)
        if shares_disk:
            path.parent.mkdir(parents=True, exist_ok=True)
            return Grant(key=key, kind=kind, path=str(path))
        return self.links.upload(key, kind, self.name)

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        if shares_disk:
            return Grant(key=key, kind=kind, path=str(self.path(key)), sha256=sha256, size=size)
        return self.links.download(key, kind, self.name, sha256=sha256, size=size)

    def signature(self, direction: str, key: str) -> str:
        """What the `X-Grant` header must hold for this key and direction (`get` or `put`)."""
        return self.links.signature(direction, key, self.name)

    def stat(self, key: str) -> ObjectInfo:
        digest, size = hashlib.sha256(), 0
        for chunk in self.read(key):
            digest.update(chunk)
            size += len(chunk)
        return ObjectInfo(key=key, size=size, sha256=digest.hexdigest())

    def head(self, key: str, size: int) -> bytes:
        try:
            with self.path(key).open("rb") as file:
                return file.read(size)
        except FileNotFoundError as error:
            raise ObjectMissing(f"{key} is not in the store") from error

    def put(self, key: str, source: Path) -> ObjectInfo:
        with source.open("rb") as file:
            return self.put_stream(key, iter(lambda: file.read(CHUNK_BYTES), b""))

    def put_stream(self, key: str, chunks: Iterator[bytes]) -> ObjectInfo:
        """Write aside, flush to disk, rename: a reader sees the whole object or none."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=ASIDE, delete=False) as file:
                aside = Path(file.name)
                try:
                    info = _copy(key, chunks, file)
                    aside.replace(path)
                    _sync_folder(path.parent)
                except BaseException:
                    aside.unlink(missing_ok=True)
                    raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"no space left in {self.folder}; free some and the job goes on") from error
            raise StoreError(f"cannot write to {self.folder}: {error.strerror}") from error
        return info

    def adopt(self, key: str, source: Path) -> bool:
        """Give a file that lies in `folder` the name `key`; False, and nothing happens, if other bytes have that name."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except FileExistsError:
            return filecmp.cmp(source, path, shallow=False)
        _sync_folder(path.parent)
        return True

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        try:
            file = self.path(key).open("rb")
        except FileNotFoundError as error:
            raise ObjectMissing(f"{key} is not in the store") from error
        with file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def delete(self, key: str) -> None:
        path = self.path(key)
        path.unlink(missing_ok=True)

    def keys(self, prefix: str) -> list[str]:
        folder = self.path(prefix.rstrip("/"))
        try:
            return [prefix + path.name for path in folder.iterdir() if is_key(path.name)]
        except FileNotFoundError:
            return []

    def usage(self) -> Usage:
        return Usage(used=sum(map(_size, self.folder.rglob("*"))), free=shutil.disk_usage(self.folder).free)


def _size(path: Path) -> int:
    try:
        found = path.stat()
    except FileNotFoundError:  # deleted while the others were counted
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _sync_folder(folder: Path) -> None:
    """Without this a power failure may take back a name that the database already counts on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(key: str, chunks: Iterator[bytes], file) -> ObjectInfo:  # noqa: ANN001  any binary file
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    file.flush()
    os.fsync(file.fileno())
    return ObjectInfo(key=key, size=size, sha256=digest.hexdigest())
