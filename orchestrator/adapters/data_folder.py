"""The server's data folder: one server at a time, private files, no unfinished ones, none that is missing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import make_url

from orchestrator.adapters.database.guard import shown
from orchestrator.domain.errors import ConflictError
from worker.shared.files import UNFINISHED, is_locked

LOCK_FILE = "server.lock"
URL_FILE = "server.url"
"""Has the address of the server that uses the folder."""


def lock(folder: Path) -> Callable[[], None]:
    """Lock the data folder for this process. The lock ends with the process, however it ends."""
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise _in_use(folder) from error
    return lambda: os.close(handle)


def refuse_served(folder: Path) -> None:
    """Raise `ConflictError`, with the address, if a server of this computer uses the data folder now."""
    if is_served(folder):
        raise _in_use(folder)


def _in_use(folder: Path) -> ConflictError:
    where = ""
    with contextlib.suppress(OSError):
        address = (folder / URL_FILE).read_text().strip()
        where = f" It runs at {address}: log in with `trainhop --data-dir {shlex.quote(str(folder))} open`."
    return ConflictError(
        f"Another server already uses {folder}.{where} Stop it, or choose another folder with --data-dir."
    )


def is_served(folder: Path) -> bool:
    """Whether a server of this computer uses the data folder now."""
    return is_locked(folder / LOCK_FILE)


def remove_unfinished(folder: Path, store: Path) -> None:
    """Delete what a server that was killed left half written in the data folder, and anywhere under its store."""
    for left in (*folder.glob(UNFINISHED), *store.rglob(UNFINISHED)):
        left.unlink(missing_ok=True)


def make_private(path: Path) -> None:
    """Allow only this user to read a file or a folder."""
    with contextlib.suppress(PermissionError):  # a file that an operator owns stays as it is
        path.chmod(0o700 if path.is_dir() else 0o600)


def refuse_missing_parts(folder: Path, *, known: bool, database: str, is_empty: bool) -> None:
    """Raise `ConflictError` if the folder was used before, but its database is empty or its store is gone.

    `known` says that the folder has an instance's id.
    """
    store = folder / "store"
    if is_empty and (known or _has_files(store)):
        raise ConflictError(
            f"The database {_name(database)} is missing or empty, but the data folder {folder} was used before. Put "
            "the database back, for example from a backup, or start with another folder (--data-dir)."
        )
    if known and not store.is_dir():
        raise ConflictError(
            f"The folder {store} with checkpoints and data files is missing. Put it back, for example from a backup, "
            "or create an empty one to continue without its files."
        )


def refuse_missing_vault_key(folder: Path, sealed: int) -> None:
    """Raise `ConflictError` if credentials are sealed with a key that is not there."""
    path = folder / "vault.key"
    if sealed and not path.exists():
        raise ConflictError(
            f"The file {path} is missing, and {sealed} stored credentials can only be read with it. Put it back, for "
            "example from a backup, or create a new key and enter the credentials again: "
            f"openssl rand -base64 32 | tr '+/' '-_' > {shlex.quote(str(path))}"
        )


def refuse_missing_token_key(folder: Path, sessions: int) -> None:
    """Raise `ConflictError` if workers are running with tokens made with a key that is not there."""
    path = folder / "secret.key"
    if sessions and not path.exists():
        raise ConflictError(
            f"The file {path} is missing, and {sessions} running sessions can only be recognised with it. Put it back, "
            "for example from a backup, or create a new key, which ends these sessions: "
            f"openssl rand -hex 32 > {shlex.quote(str(path))}"
        )


def _has_files(store: Path) -> bool:
    return any(path.is_file() and not path.name.startswith(".incoming-") for path in store.rglob("*"))


def _name(database: str) -> str:
    """A database's URL without its password, or the path of its file."""
    url = make_url(database)
    return url.database or "" if url.get_backend_name() == "sqlite" else shown(url)
