"""A folder as a shared place, on one machine or on a file system of several machines that passes the probe.

A document is a folder of numbered versions. The next number is created by a hard link, which succeeds once. So nothing
is ever half written or locked, whenever a process is killed.
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.shared.files import UNFINISHED, create_once, flush_to_disk, link_once, sync_folder
from worker.shared.shared_places.errors import FullError, LostError, MissingError, RefusedError, UnknownError
from worker.shared.shared_places.place import MAX_DOC_BYTES, READ_BYTES, Blob, digest

_VERSION = re.compile(r"\d{12}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class LocalFolder:
    """A place in this folder, which is created if it is missing."""

    beat_every_s = 15.0
    patience_s = 60.0
    kept_versions = 100
    """Old versions of a document that stay. They make it rare that a late writer creates a number that was deleted."""

    def __init__(self, folder: Path) -> None:
        self._blobs, self._docs = folder / "files", folder / "documents"
        self.address = str(folder)
        with self._translated():
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._docs.mkdir(exist_ok=True)

    # --- documents ---

    def read_doc(self, name: str) -> bytes | None:
        with self._translated():
            while number := self._newest(name):
                if (found := self._content(name, number)) is not None:
                    return found[:MAX_DOC_BYTES]
        return None

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        lost = LostError(f"{name} in {self.address} was changed by another session")
        with self._translated():
            (self._docs / name).mkdir(exist_ok=True)
            number = self._newest(name)
            found = self._content(name, number)
            if found != expected or (found is None and number):
                raise lost
            if not create_once(self._version(name, number + 1), new, mode=0o666):
                raise lost
            if self._newest(name) > number + self.kept_versions:  # it slept, and created a number that had been deleted
                raise lost
            for old in self._numbers(name):
                if old <= number - self.kept_versions:
                    self._version(name, old).unlink(missing_ok=True)

    def _content(self, name: str, number: int) -> bytes | None:
        """None if there is no such version, or no more."""
        try:
            return self._version(name, number).read_bytes()
        except FileNotFoundError:
            return None

    def _version(self, name: str, number: int) -> Path:
        return self._docs / name / f"{number:012d}"

    def _numbers(self, name: str) -> list[int]:
        try:
            return [int(found.name) for found in (self._docs / name).iterdir() if _VERSION.fullmatch(found.name)]
        except FileNotFoundError:
            return []

    def _newest(self, name: str) -> int:
        return max(self._numbers(name), default=0)

    # --- files ---

    def put(self, name: str, source: Path) -> None:
        target = self._blobs / name
        if target.exists():
            return
        with self._translated():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{UNFINISHED.rstrip('?')}{secrets.token_hex(4)}")
            try:
                with source.open("rb") as reading, temporary.open("xb") as writing:
                    shutil.copyfileobj(reading, writing, READ_BYTES)
                    flush_to_disk(writing)
                link_once(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def sha256(self, name: str) -> str:
        return digest(self, name)

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with self._translated(), (self._blobs / name).open("rb") as file:
            file.seek(start)
            left = None if end is None else max(0, end - start)
            while piece := file.read(READ_BYTES if left is None else min(READ_BYTES, left)):
                left = None if left is None else left - len(piece)
                yield piece

    def blobs(self) -> list[Blob]:
        with self._translated():
            found = [path for path in self._blobs.rglob("*") if path.is_file()]
            return [Blob(name=path.relative_to(self._blobs).as_posix(), size=path.stat().st_size) for path in found]

    def delete(self, names: Collection[str]) -> None:
        with self._translated():
            for name in names:
                (self._blobs / name).unlink(missing_ok=True)
            for folder in {(self._blobs / name).parent for name in names}:
                sync_folder(folder)

    def close(self) -> None:
        """Nothing is open."""

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingError(f"{error.filename} is missing in {self.address}") from None
        except OSError as error:
            if error.errno in _FULL:
                raise FullError(f"{self.address} is full: delete files there, or use another place") from None
            if error.errno in _READ_ONLY:
                raise RefusedError(f"{self.address} is read-only for this user ({error.strerror})") from None
            raise UnknownError(f"{self.address}: {error.strerror or error}") from None
