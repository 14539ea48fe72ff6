"""A store in a folder on the server's disk."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.adapters.stores.deletions import deletion, prepare
from orchestrator.adapters.stores.keys import checked, is_key
from orchestrator.ports.stores import (
    Grant,
    GrantKind,
    ObjectInfo,
    ObjectMissing,
    StoreEnv,
    StoreError,
    StoreFull,
    StoreTexts,
    Usage,
)
from worker.shared.files import atomic_file, link_once

CHUNK_BYTES = 1 << 20


class LocalStore:
    """Implements `ports.Store` under one folder.

    A worker on this computer is granted a path. Any other worker is granted a URL of this server, with a keyed header
    that is valid for that one key and direction.
    """

    name = "local"
    texts = StoreTexts(title="This computer")

    def __init__(self, env: StoreEnv) -> None:
        self.folder, self.links = env.folder, env.links
        self.folder.mkdir(parents=True, exist_ok=True)
        prepare(self.folder)

    def path(self, key: str) -> Path:
        """The path of an object. Raises `StoreError` for a key that the server would not have made."""
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
        """The value of the `X-Grant` header for this key and direction (`get` or `put`)."""
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
            raise ObjectMissing(f"The file {key} is not in the store.") from error

    def put(self, key: str, source: Path) -> ObjectInfo:
        with source.open("rb") as file:
            return self.put_stream(key, iter(lambda: file.read(CHUNK_BYTES), b""))

    def put_stream(self, key: str, chunks: Iterator[bytes]) -> ObjectInfo:
        """Write an object. A reader sees the whole object or none."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, mode=0o600) as file:
                info = _copy(key, chunks, file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"no space left in {self.folder}. Free some, then the job resumes") from error
            raise StoreError(f"cannot write to {self.folder}: {error.strerror}") from error
        return info

    def adopt(self, key: str, source: Path) -> bool:
        """Store a file of `folder` under `key`. Returns False and changes nothing if `key` has other bytes."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return link_once(source, path) or filecmp.cmp(source, path, shallow=False)

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        try:
            file = self.path(key).open("rb")
        except FileNotFoundError as error:
            raise ObjectMissing(f"The file {key} is not in the store.") from error
        with file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def delete(self, key: str) -> None:
        path = self.path(key)
        with deletion(self.folder):
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


def _copy(key: str, chunks: Iterator[bytes], file: BinaryIO) -> ObjectInfo:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return ObjectInfo(key=key, size=size, sha256=digest.hexdigest())
