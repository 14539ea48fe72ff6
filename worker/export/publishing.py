"""A folder that appears under its name whole or not at all, with what an earlier, killed export left removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.export.errors import ExportError, RoomError
from worker.shared import causes
from worker.shared.files import move_into_place

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def published(out: Path, needed: int) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` when the block ends, and is removed if the block raises.

    `needed` is the number of bytes that must be free. Raises `ExportError` if `out` exists, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} already exists; choose another place with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        _check_room(out.parent, needed)
        with _locked(out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")) as folder:
            yield folder
            move_into_place(folder, out)
    except OSError as error:
        if error.errno in _FULL:
            words = f"{out} could not be written: the disk is full; nothing was published"
            raise RoomError(words, causes.DISK) from error
        raise ExportError(
            f"{error.filename or out}: {error.strerror or error}; nothing was published as {out.name}"
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """A new folder. Its lock shows that its process lives. It is removed at the end, if it still has its name."""
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    for folder in out.parent.glob(f".{_escaped(out.name)}.????????.part"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        words = f"the export needs {needed / 2**30:.1f} GiB in {folder}, and {free / 2**30:.1f} GiB are free"
        raise RoomError(words, causes.DISK)
