"""Backups of a server: its database, keys, local store and notes of sessions, written while it runs, and put back.

The order makes a backup consistent. First, deletions in the local store end. Then the database is copied in one
transaction. Every file that this copy names is in the store by then, does not change, and stays until all are written.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from orchestrator.adapters import data_folder
from orchestrator.adapters.backup_file import FORMAT, About, BackupWriter, is_name, open_backup
from orchestrator.adapters.database import snapshot
from orchestrator.adapters.instance import ID_FILE, InstanceFolder
from orchestrator.adapters.stores.deletions import no_deletions
from orchestrator.adapters.stores.keys import is_key
from orchestrator.domain.errors import ConflictError, InvalidError, UnavailableError
from orchestrator.ports.stores import StoreBusy
from worker.shared.files import UNFINISHED, atomic_file, flush_to_disk, sync_folder, temporary_folder

DATABASE, STORE = "database.sqlite", "store"
KEYS = ("secret.key", "vault.key", "admin.token", ID_FILE, "clock.json")
NOTES = (".json", ".jsonl", ".log")
FILES = "files"
"""What is kept of the drivers' folders: records, messages, logs, and files that came from an ended session. All else
there is made for one machine."""
NOT_OF_DRIVERS = frozenset({STORE, "models", "hub", "exports", "pushes", "huggingface", "trackers", "tensorboard"})
"""Folders with files that are fetched or made again."""
MAX_NOTE_BYTES = 64 << 20
MAX_NOTE_DEPTH = 5
"""drivers/NAME/SESSION/files/FILE"""
STAGE = ".restoring-"


@dataclass(kw_only=True)
class Written:
    """What a backup contains: its members and bytes. `missing` and `changed` are files that the database names."""

    about: About
    files: int = 0
    size: int = 0
    missing: list[str] = field(default_factory=list[str])
    changed: list[str] = field(default_factory=list[str])


def back_up(folder: Path, url: str, to: Path) -> Written:
    """Write a backup of the data folder and its database to the file `to`. The server may be running.

    An older file is replaced when the new one is complete. Raises `ConflictError`, `InvalidError` or
    `UnavailableError`, and leaves nothing behind then.
    """
    to = to.absolute()
    _refuse_place(folder, to)
    store = folder / STORE
    try:
        with (
            no_deletions(store) if store.is_dir() else nullcontext(),
            temporary_folder(".trainhop-", to.parent) as temporary,
        ):
            copy = temporary / DATABASE
            snapshot.take_snapshot(url, copy)
            about = _about(folder, copy)
            members = {DATABASE: copy, **_members(folder)}
            _refuse_without_room(to.parent, sum(map(_size, members.values())))
            with atomic_file(to, mode=0o600) as file:
                writer = BackupWriter(file, about)
                for name, path in members.items():
                    with suppress(FileNotFoundError):  # notes of a session that was cleared away
                        writer.add(name, path)
                writer.close()
            return _written(about, writer, copy, to.stat().st_size)
    except StoreBusy as error:
        raise ConflictError(f"Another backup of {folder} is running. Wait until it has ended.") from error
    except OSError as error:
        raise UnavailableError(f"The backup was not written: {_words(error, to, folder)}.") from error


def _refuse_place(folder: Path, to: Path) -> None:
    if InstanceFolder(folder).id is None:
        raise ConflictError(f"No server has used the folder {folder}. Choose its data folder with --data-dir.")
    if to.is_dir():
        raise InvalidError(f"{to} is a folder. Name a file for the backup.")
    if to.resolve().is_relative_to(folder.resolve()):
        raise InvalidError(f"{to} is in the data folder, and would be lost with it. Choose another place.")


def _refuse_without_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free", str(folder))


def _about(folder: Path, copy: Path) -> About:
    instance, theirs = InstanceFolder(folder).id or "", snapshot.instance_of(copy)
    if instance != theirs:
        raise ConflictError(
            f"The database belongs to another data folder than {folder}. Set --data-dir and TRAINHOP_DATABASE_URL as "
            "for the server."
        )
    return About(
        format=FORMAT,
        version=version("trainhop"),
        schema=snapshot.revision_of(copy),
        created_at=time.time(),
        instance=instance,
        folder=str(folder),
        host=platform.node(),
    )


def _members(folder: Path) -> dict[str, Path]:
    """The files of a backup by their names in it."""
    keys = {name: folder / name for name in KEYS if (folder / name).is_file()}
    return keys | dict(_stored(folder / STORE)) | dict(_notes(folder))


def _stored(store: Path) -> Iterator[tuple[str, Path]]:
    """The finished files of the local store."""
    for path in sorted(store.rglob("*")):
        key = path.relative_to(store).as_posix()
        if is_key(key) and path.is_file() and not path.is_symlink():
            yield f"{STORE}/{key}", path


def _notes(folder: Path) -> Iterator[tuple[str, Path]]:
    """What drivers have noted of sessions. Logs come last, because records have positions in them."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    found = [
        path
        for driver in inside
        if driver.name not in NOT_OF_DRIVERS and is_name(driver.name)
        for path in driver.rglob("*")
        if _is_note(path, len(path.relative_to(folder).parts))
    ]
    for path in sorted(found, key=lambda path: (path.suffix != ".json", path)):
        name = path.relative_to(folder).as_posix()
        if is_name(name):
            yield name, path


def _is_note(path: Path, depth: int) -> bool:
    if depth > MAX_NOTE_DEPTH or path.is_symlink() or not path.is_file() or path.match(UNFINISHED):
        return False
    return path.parent.name == FILES or (path.suffix in NOTES and _size(path) <= MAX_NOTE_BYTES)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _written(about: About, writer: BackupWriter, copy: Path, size: int) -> Written:
    """Compare what was written with what the database names."""
    written = Written(about=about, files=len(writer.hashes), size=size)
    for key, sha256 in snapshot.named_files(copy).items():
        found = writer.hashes.get(f"{STORE}/{key}")
        if found is None:
            written.missing.append(key)
        elif sha256 and found[1] != sha256:
            written.changed.append(key)
    return written


def _words(error: OSError, target: Path, source: Path) -> str:
    """What went wrong where. Files below `target` are temporary, and mean nothing to people."""
    named = Path(error.filename or target)
    return f"{named if named.is_relative_to(source) else target}: {error.strerror or error}"


def restore(file: Path, folder: Path, url: str) -> About:
    """Put a backup into an empty folder, and its database where `url` says. Returns what it was of.

    Everything is unpacked and compared first. Raises `ConflictError` if folder or database are in use, `InvalidError`
    for a damaged or newer backup, and `UnavailableError`, and leaves nothing behind then.
    """
    _refuse_used(folder)
    existed = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unlock = data_folder.lock(folder)
        try:
            with _stage(folder) as stage:
                return _restored(file, folder, url, stage)
        finally:
            unlock()
            _tidy(folder, existed=existed)
    except OSError as error:
        raise UnavailableError(f"Nothing was restored: {_words(error, folder, file)}.") from error


def _refuse_used(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidError(f"{folder} is not a folder.")
    if folder.is_dir() and any(not _is_left(path) for path in folder.iterdir()):
        raise ConflictError(
            f"The folder {folder} is in use, and a backup is restored to an empty one only. Stop its server and move "
            "it away, or choose another with --data-dir."
        )


def _is_left(path: Path) -> bool:
    """Whether an earlier restore that was killed has left it. Nothing of that was in use."""
    return path.name == data_folder.LOCK_FILE or path.name.startswith(STAGE)


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """A folder inside the data folder, so that its files are moved within one file system."""
    _refuse_used(folder)  # now that nobody else can use it
    for left in folder.glob(f"{STAGE}*"):
        shutil.rmtree(left)
    with temporary_folder(STAGE, folder) as stage:
        yield stage


def _tidy(folder: Path, *, existed: bool) -> None:
    """Remove an empty folder that was made for a restore that failed, and the lock's file."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} == {data_folder.LOCK_FILE}:
            (folder / data_folder.LOCK_FILE).unlink()
            if not existed:
                folder.rmdir()


def _restored(file: Path, folder: Path, url: str, stage: Path) -> About:
    with open_backup(file) as backup:
        about = backup.about
        _refuse_newer(about)
        _refuse_without_room(folder, file.stat().st_size)
        backup.unpack(stage)
        _refuse_other_parts(stage, about)
    (stage / STORE).mkdir(mode=0o700, exist_ok=True)
    InstanceFolder(stage).mark_as_copy(about.folder, about.host)
    database, target = stage / DATABASE, snapshot.sqlite_path(url)
    _flush(stage)
    if target is None:
        with snapshot.filled(database, url):
            database.unlink()
            _place(stage, folder)
        return about
    target = target.absolute()
    if target.exists():
        raise ConflictError(f"The database {target} exists already. A backup is restored to a new one only.")
    if target.is_relative_to(folder.absolute()):
        (stage / target.relative_to(folder.absolute()).parent).mkdir(parents=True, exist_ok=True)
        database.rename(stage / target.relative_to(folder.absolute()))
        _place(stage, folder, last=target.relative_to(folder.absolute()).parts[0])
        return about
    with atomic_file(target, mode=0o600) as copy, database.open("rb") as source:
        shutil.copyfileobj(source, copy)
    database.unlink()
    try:
        _place(stage, folder)
    except BaseException:
        target.unlink()
        raise
    return about


def _refuse_newer(about: About) -> None:
    if snapshot.is_newer(about.schema):
        raise InvalidError(
            f"The backup was made by a newer version, trainhop {about.version}, and this one does not know its "
            f"database (revision {about.schema}). Upgrade trainhop, then restore it."
        )


def _refuse_other_parts(stage: Path, about: About) -> None:
    """Raise `InvalidError` if the unpacked parts do not belong together."""
    known = {DATABASE, *KEYS}
    odd = [p.name for p in stage.iterdir() if p.is_file() and p.name not in known]
    lacking = [name for name in (DATABASE, ID_FILE, "secret.key") if not (stage / name).is_file()]
    same = not lacking and about.instance == InstanceFolder(stage).id == snapshot.instance_of(stage / DATABASE)
    if odd or not same or snapshot.revision_of(stage / DATABASE) != about.schema:
        raise InvalidError("The backup is damaged: its parts do not belong together. Nothing was restored.")


def _flush(stage: Path) -> None:
    for path in stage.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                flush_to_disk(file)
        else:
            sync_folder(path)


def _place(stage: Path, folder: Path, last: str = "") -> None:
    """Move everything to its place, the database last: a server refuses a folder that was used and has none."""
    placed: list[Path] = []
    try:
        for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
            path.rename(folder / path.name)
            placed.append(folder / path.name)
        sync_folder(folder)
    except BaseException:
        for path in placed:
            shutil.rmtree(path) if path.is_dir() else os.unlink(path)  # noqa: PTH108
        raise
