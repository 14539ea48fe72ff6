"""Files and folders that end up whole or not at all, also if a process is killed or the power fails."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

_PREFIX = ".incoming-"
UNFINISHED = f"{_PREFIX}????????"
"""The pattern of the names that files have here before they are finished. A killed process may leave such a file."""


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends. An error leaves an older file as it is.

    `mode` is its permissions before the umask. The folder must exist. Raises `OSError`.
    """
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), "w+b") as file:
            yield file
            flush_to_disk(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Replace the file's content, or create the file. Text is written as UTF-8."""
    with atomic_file(path, mode=mode) as file:
        file.write(_encode(content))


def create_once(path: Path, content: str | bytes, *, mode: int = 0o600) -> bool:
    """Create a file that by default only its owner can read. Returns False and changes nothing if it exists."""
    if path.exists():
        return False
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(_encode(content))
            flush_to_disk(file)
        return link_once(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def link_once(source: Path, path: Path) -> bool:
    """Give a finished file on the same disk another name. False if that name is in use."""
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    sync_folder(path.parent)
    return True


def move_into_place(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Give a finished file or folder its final name. Replaces an older file or an empty folder.

    If not `durable`, a power failure may truncate it. Use that for files that can be made again and are checked before
    use.
    """
    if durable:
        for file in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            elif file.is_dir():
                sync_folder(file)
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def flush_to_disk(file: IO[bytes]) -> None:
    """Flush everything written so far, so that it survives a power failure."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the folder's names, so that they survive a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows and some network folders cannot open a folder, so the rename cannot be made safer there
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process of this computer keeps a lock on the file. False if there is no such file."""
    import fcntl  # Windows has none

    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def expanded(path: str | Path) -> Path:
    """The path with `~` or `~user` replaced. Unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None) -> Iterator[Path]:
    """A new folder that is removed when the block ends, also if a signal handler raises while it is being made.

    `tempfile.TemporaryDirectory` leaves the folder then.
    """
    path = (parent or Path(tempfile.gettempdir())) / f"{prefix}{secrets.token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _encode(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
