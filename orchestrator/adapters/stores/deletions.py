"""Keeps the files of the local store in place while a backup reads them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.ports.stores import StoreBusy

PATIENCE_S = 10.0
"""How long a backup waits for another one. A deletion takes milliseconds."""


def prepare(store: Path) -> None:
    """Make the lock's file now: a full disk may have no room for it when something is to be deleted."""
    with suppress(OSError):
        os.close(_open(store))


@contextmanager
def deletion(store: Path) -> Iterator[None]:
    """Delete a file of the store in this block. Raises `StoreBusy` while a backup reads the store."""
    descriptor = _open(store)
    try:
        if not _locked(descriptor, fcntl.LOCK_SH):
            raise StoreBusy("a backup reads the store, and nothing is deleted meanwhile")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def no_deletions(store: Path, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """No process deletes a file of the store in this block. The lock ends with this process, however it ends.

    Raises `StoreBusy` if another backup keeps it for `patience_s`.
    """
    descriptor, until = _open(store), time.monotonic() + patience_s
    try:
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise StoreBusy(f"another backup reads {store}")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _open(store: Path) -> int:
    """The lock's file is beside the store, where nobody takes it for a stored one."""
    return os.open(store.with_name(f".{store.name}-deletions.lock"), os.O_RDWR | os.O_CREAT, 0o600)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
