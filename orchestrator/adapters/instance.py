"""The id of this instance, in its data folder and its database, and how a copied folder is recognised.

A folder was copied if the file with its id is another file than at the last start: neither its device and inode nor the
time of its last change are the same. The path, the host and its name do not count, since they change with every
container, mount and move.
"""

from __future__ import annotations

import json
import platform
import secrets
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.adapters.data_folder import is_served
from orchestrator.domain.errors import ConflictError
from worker.shared.files import create_once, write_atomically

ID_FILE = "instance.id"
PLACE_FILE = "instance.json"


class Origin(StrEnum):
    """What a person says of a copied data folder: the original is not used any more, or this is a copy of it."""

    MOVED = "moved"
    COPY = "copy"


@dataclass(frozen=True)
class _FolderIdentity:
    """Where the folder was last used, and its id file there. Folder and host are only for people."""

    folder: str
    host: str
    device: int
    inode: int
    changed_ns: int


class InstanceFolder:
    """The identity of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file, self._note = folder, folder / ID_FILE, folder / PLACE_FILE

    @property
    def id(self) -> str | None:
        """The instance's id. None before the first start, and in a folder of an earlier version."""
        try:
            return self._file.read_text().strip() or None
        except FileNotFoundError:
            return None

    def refuse_copy(self) -> None:
        """Raise `ConflictError` if the folder was copied since its last start."""
        last = self._last_place()
        if last is None or self.id is None:
            return
        now = self._place()
        if now.changed_ns == last.changed_ns or (now.device, now.inode) == (last.device, last.inode):
            return
        raise ConflictError(
            f"The data folder {self._folder} was copied from {last.folder} on {last.host}, where a server may still "
            "use the original. Start once with --moved if the original is no longer used, or with --as-copy to make "
            "a server of its own that leaves the original's sessions alone and pauses its unfinished jobs."
        )

    def refuse_running_original(self) -> None:
        """Raise `ConflictError` if the folder was copied from one that a server of this computer uses now."""
        last = self._last_place()
        if last is None or self.id is None:
            return
        original = Path(last.folder)
        is_another = original.resolve() != self._folder.resolve()
        if is_another and InstanceFolder(original).id == self.id and is_served(original):
            raise ConflictError(
                f"The data folder {self._folder} was copied from {original}, which a server on this computer uses. "
                "Stop that server first, or start with --as-copy to make a server of its own."
            )

    def mark_as_copy(self, folder: str, host: str) -> None:
        """Note that the folder was restored from a copy of `folder` on `host`. Its next start asks what it is."""
        write_atomically(self._note, json.dumps(asdict(_FolderIdentity(folder, host, 0, 0, 0))), mode=0o600)

    def keep(self, instance_id: str) -> None:
        """Write the id, and the place where the folder is used now."""
        if self.id is None:
            create_once(self._file, instance_id + "\n")
        elif self.id != instance_id:
            write_atomically(self._file, instance_id + "\n", mode=0o600)
        place = self._place()
        if place != self._last_place():
            write_atomically(self._note, json.dumps(asdict(place)), mode=0o600)

    def _place(self) -> _FolderIdentity:
        found = self._file.stat()
        return _FolderIdentity(str(self._folder), platform.node(), found.st_dev, found.st_ino, found.st_ctime_ns)

    def _last_place(self) -> _FolderIdentity | None:
        try:
            return _FolderIdentity(**json.loads(self._note.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def new_instance_id() -> str:
    """A random id."""
    return f"instance-{secrets.token_hex(16)}"


def choose_id(in_folder: str | None, in_database: str | None, origin: Origin | None, folder: Path) -> str:
    """The id of the instance that a folder and a database make up.

    Raises `ConflictError` if the two belong to different instances, unless `origin` says what is meant.
    """
    if origin is Origin.COPY:
        return new_instance_id()
    if in_folder and in_database and in_folder != in_database and origin is None:
        raise ConflictError(
            f"The database belongs to another data folder than {folder}. Correct --data-dir or TRAINHOP_DATABASE_URL, "
            "or start once with --moved if the two belong together from now on."
        )
    return in_folder or in_database or new_instance_id()
