"""Unpacks the archive of an adapter, which a machine of a stranger may have written."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path, PurePosixPath

WEIGHTS = "adapter_model.safetensors"
CARD, PROVENANCE = "README.md", "trainhop-provenance.json"
"""Files that the server makes when they are read, because an adapter is evaluated after its archive is written."""
MAX_GROWTH = 200
"""Unpacked bytes per archive byte. Tensors hardly compress, so a higher ratio is an attack on the disk."""
ALLOWANCE_BYTES = 64 << 20


class ArchiveError(Exception):
    """The archive is damaged, or it has something that an adapter's archive never has."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack plain files into the new `folder`.

    Raises `ArchiveError` for links, bombs, and names that lead out of it.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            for entry in entries:
                _refuse_trick(entry)
            limit = archive.stat().st_size * MAX_GROWTH + ALLOWANCE_BYTES
            if sum(e.file_size for e in entries) > limit:
                raise ArchiveError(f"The archive unpacks to more than {limit / (1 << 20):.1f} MiB")
            folder.mkdir(parents=True)
            packed.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"The archive is damaged ({error}). Download it again.") from error


def unpacked_bytes(archive: Path) -> int:
    """The bytes of all files in the archive, as it says. Unpacking writes no more. Raises `ArchiveError`."""
    try:
        with zipfile.ZipFile(archive) as packed:
            return sum(entry.file_size for entry in packed.infolist())
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"The archive is damaged ({error}). Download it again.") from error


def verify_weights(folder: Path, sha256: str) -> None:
    """Raise `ArchiveError` unless the folder has weights with this hash."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ArchiveError(f"The archive has no {WEIGHTS}. Download it again.")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ArchiveError(f"{WEIGHTS} is damaged: sha256 {found}, expected {sha256}. Download it again.")


def _refuse_trick(entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    odd = name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename
    if odd or (mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0)):
        raise ArchiveError(f"The archive has the unsafe entry {entry.filename!r}. It was not unpacked.")
