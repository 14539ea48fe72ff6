"""The file of a backup: a tar file that begins with what it is, and ends with the size and hash of every member."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from orchestrator.domain.errors import InvalidError

FORMAT = 1
ABOUT, HASHES, SEAL = "backup.json", "hashes.json", "hashes.sha256"
MAX_MEMBERS = 1_000_000
MAX_TEXT_BYTES = 256 << 20
"""Of the list of hashes."""
MAX_BYTES = 64 << 40
CHUNK_BYTES = 1 << 20
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/\.?{_PART})*")
_MAX_NAME = 400


@dataclass(frozen=True, kw_only=True)
class About:
    """What a backup is of: the version of its format and of its database, the instance, and where it was."""

    format: int
    version: str
    schema: str
    created_at: float
    instance: str
    folder: str
    host: str


def damaged(why: str) -> InvalidError:
    """The error for a file that is not a whole backup."""
    return InvalidError(f"The backup is damaged: {why}. Nothing was restored.")


def is_name(name: str) -> bool:
    """Whether a member may have this name: relative, in plain letters, without `..`."""
    return len(name) <= _MAX_NAME and _NAME.fullmatch(name) is not None


class BackupWriter:
    """Writes a backup. It is complete after `close`."""

    def __init__(self, file: IO[bytes], about: About) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, copybufsize=CHUNK_BYTES)
        self._created_at = about.created_at
        self.hashes: dict[str, list[Any]] = {}
        self._add_text(ABOUT, json.dumps(asdict(about)))

    def add(self, name: str, path: Path) -> str:
        """Add the bytes that the file has now. Returns their sha256. A file that grows is cut, one that shrinks is not.

        Raises `FileNotFoundError` before anything is written if there is no such file.
        """
        with path.open("rb") as file:
            return self._add(name, file, os.fstat(file.fileno()).st_size)

    def _add_text(self, name: str, text: str) -> str:
        content = text.encode()
        return self._add(name, BytesIO(content), len(content))

    def _add(self, name: str, file: BinaryIO, size: int) -> str:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o600, self._created_at
        hashed = _Hashed(file)
        self._tar.addfile(member, hashed)  # pyright: ignore[reportArgumentType]  it only reads
        self.hashes[name] = [size, hashed.digest.hexdigest()]
        return hashed.digest.hexdigest()

    def close(self) -> None:
        """Write the sizes and hashes, and a hash of them."""
        text = json.dumps(self.hashes)
        self._add_text(HASHES, text)
        self._add_text(SEAL, hashlib.sha256(text.encode()).hexdigest())
        self._tar.close()


class _Hashed:
    """A file of which the hash is known once it was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        found = self._file.read(size)
        self.digest.update(found)
        return found


class BackupReader:
    """Reads a backup from its beginning. `about` is known at once, all else is true only once `unpack` has returned."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        first = tar.next()
        if first is None or first.name != ABOUT:
            raise InvalidError("The file is not a backup of trainhop.")
        self._hashes: dict[str, list[Any]] = {}
        self.about = _about(self._text(first))

    def unpack(self, folder: Path) -> None:
        """Write all members below `folder`, an empty one. Raises `InvalidError` unless all of them are as they were."""
        total, sealed = 0, ""
        while (member := self._tar.next()) is not None:
            total += member.size
            if member.type != tarfile.REGTYPE or not is_name(member.name) or member.name in self._hashes:
                raise damaged(f"it has the member {member.name[:100]!r}")
            if len(self._hashes) > MAX_MEMBERS or total > MAX_BYTES:
                raise damaged("it is too large")
            if member.name == HASHES:
                stated = self._hashes.copy()
                text = self._text(member)
                sealed = hashlib.sha256(text).hexdigest()
                _compare(_object(text), stated)
            elif member.name == SEAL:
                if not sealed or self._text(member).decode(errors="replace") != sealed:
                    raise damaged("its list of hashes was changed")
                return
            else:
                self._extract(member, folder / member.name)
        raise damaged("its end is missing")

    def _extract(self, member: tarfile.TarInfo, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        digest, left = hashlib.sha256(), member.size
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            for chunk in self._chunks(member):
                digest.update(chunk)
                target.write(chunk)
                left -= len(chunk)
        if left:
            raise damaged("its end is missing")
        self._hashes[member.name] = [member.size, digest.hexdigest()]

    def _chunks(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        source = self._tar.extractfile(member)
        assert source is not None, "a regular file has content"
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
        # Nothing needs the list of members, and a million of them take half a gigabyte.
        self._tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]

    def _text(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            raise damaged("it is too large")
        text = b"".join(self._chunks(member))
        if len(text) < member.size:
            raise damaged("its end is missing")
        self._hashes[member.name] = [member.size, hashlib.sha256(text).hexdigest()]
        return text


@contextmanager
def open_backup(path: Path) -> Iterator[BackupReader]:
    """Open a backup. Raises `InvalidError` for another or a damaged file, also in the block."""
    try:
        tar = tarfile.TarFile(path, "r")
    except tarfile.TarError as error:
        raise InvalidError(f"The file {path} is not a backup of trainhop.") from error
    with tar:
        try:
            yield BackupReader(tar)
        except (tarfile.TarError, EOFError, OverflowError) as error:
            raise damaged(str(error)) from error


def _about(text: bytes) -> About:
    found = _object(text)
    if not isinstance(found.get("format"), int) or found["format"] > FORMAT:
        raise InvalidError("The backup was made by a newer version of trainhop. Upgrade trainhop, then restore it.")
    try:
        about = About(**{name: found[name] for name in About.__dataclass_fields__})
        if not all(isinstance(getattr(about, n), str) for n in ("version", "schema", "instance", "folder", "host")):
            raise damaged("what it is of cannot be read")
    except KeyError as error:
        raise damaged("what it is of cannot be read") from error
    return about


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged("it has text that cannot be read") from error
    if not isinstance(found, dict):
        raise damaged("it has text that cannot be read")
    return found


def _compare(stated: dict[str, Any], found: dict[str, list[Any]]) -> None:
    for name in sorted({*stated, *found}):
        if stated.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not as it was"
            raise damaged(f"its member {name[:100]} {what}")
