"""Unpacks the zip file of an adapter: plain files only, and no more than their archive can hold."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

MAX_GROWTH = 200
"""Unpacked bytes per archive byte. Tensors hardly compress, so a higher ratio is an attack on the disk."""
ALLOWANCE_BYTES = 64 << 20


class ArchiveError(Exception):
    """The archive is damaged or unsafe, and nothing was unpacked. The message is one sentence."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into the new `folder`. Raises `ArchiveError` for links, bombs, and names that lead out of it."""
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


def _refuse_trick(entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    odd = name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename
    if odd or (mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0)):
        raise ArchiveError(f"The archive has the unsafe entry {entry.filename!r}. It was not unpacked.")
