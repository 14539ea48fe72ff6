"""A worker's own folder of packages. The machine's environment is not changed.

Standard library only. The folder comes first on the worker's path. Its `about.json` records the package set and the
machine, so that the folder is reused, here or on the next machine, only where it fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import py_compile
import shutil
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from worker.shared import causes
from worker.shared.bounded_process import Limits
from worker.shared.files import atomic_file, move_into_place, temporary_folder
from worker.shared.packages import InstallError, bring, kept, lacking, set_key
from worker.shared.pip_words import FULL_DISK

STAGED = "trainhop-packages.bin"
"""The whole folder as one file, which a session stores for later ones."""
FOLDER = "WORKER_PACKAGES"
"""The environment variable with the path of the worker's folder."""
MAX_BYTES, MAX_FILES = 4 << 30, 200_000
"""Limits of a staged set after it is unpacked."""
_ABOUT = "about.json"
_MAX_ABOUT = 1 << 16
_THREADS = 4


def about(lines: Iterable[str]) -> dict[str, Any]:
    """What identifies a folder on this machine: package set, Python version, preinstalled packages."""
    return {"key": set_key(lines), "python": "{}.{}".format(*sys.version_info), "kept": kept()}


def fits(found: Any, lines: Iterable[str], here: Mapping[str, Any] | None = None) -> bool:
    """Whether a folder with this description can be used on this machine, which `about` describes as `here`.

    A machine without a GPU has the same image except for the builds of torch (`2.10.0+cpu`) and the packages for a GPU.
    """
    here = here or about(lines)
    try:
        theirs = {str(name): _public(str(version)) for name, version in found["kept"].items()}
        same = (found["key"], found["python"]) == (here["key"], here["python"])
    except (KeyError, TypeError, AttributeError):
        return False
    ours = {name: _public(version) for name, version in here["kept"].items()}
    both = theirs.keys() & ours.keys()
    return same and "torch" in both and all(theirs[name] == ours[name] for name in both)


def _public(version: str) -> str:
    return version.partition("+")[0]


def home(lines: Iterable[str], here: Mapping[str, Any] | None = None) -> Path:
    """The cache folder for these requirements on a person's machine, one for each Python version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = json.dumps(here or about(lines), sort_keys=True).encode()
    return cache / "trainhop" / "packages" / hashlib.sha256(named).hexdigest()[:12]


def search_path(ours: Sequence[Path], inherited: str) -> str:
    """The worker's `PYTHONPATH`: our folders first, then the inherited entries.

    Empty entries are dropped. They would mean the current folder, which may contain anything.
    """
    return os.pathsep.join([*map(str, ours), *filter(None, inherited.split(os.pathsep))])


def ready(
    folder: Path,
    lines: Sequence[str],
    *,
    staged: Path | None = None,
    wheels: Path | None = None,
    limits: Limits | None = None,
) -> str:
    """Install into the folder what these requirements lack. Returns `here`, `kept`, `staged` or `installed`.

    Raises `InstallError`.
    """
    if not lacking(lines):
        return "here"
    if fits(_read(folder / _ABOUT), lines):
        return "kept"
    if staged is not None and unpack(staged, folder, lines):
        return "staged"
    bring(lines, folder, wheels=wheels, limits=limits)
    (folder / _ABOUT).write_text(json.dumps(about(lines)))
    return "installed"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


# --- the folder as one file ---


def pack(folder: Path, target: Path) -> None:
    """Write the folder as one file, with the byte code of every module that was imported from it."""
    _keep_byte_code(folder)
    with atomic_file(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder).as_posix())


def _keep_byte_code(folder: Path) -> None:
    """Recompile the byte code so that it is valid whatever the source's time, which a copy does not preserve."""
    for path in folder.rglob("__pycache__/*.pyc"):
        source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
        path.unlink()
        if source.is_file():
            py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def unpack(archive: Path, folder: Path, lines: Sequence[str], *, max_bytes: int = MAX_BYTES) -> bool:
    """Unpack a staged set into the folder. False, and no folder, if the set does not fit this machine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(".packages-", folder.parent) as aside:
            new = aside / "new"
            if not _unpacked(archive, new, lines, max_bytes) or lacking(lines, new):
                return False
            shutil.rmtree(folder, ignore_errors=True)
            move_into_place(new, folder, durable=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, NotImplementedError):
        return False
    return True


def _unpacked(archive: Path, new: Path, lines: Sequence[str], max_bytes: int) -> bool:
    with zipfile.ZipFile(archive) as whole:
        entries = whole.infolist()
        size = sum(entry.file_size for entry in entries)
        if len(entries) > MAX_FILES or size > max_bytes or whole.getinfo(_ABOUT).file_size > _MAX_ABOUT:
            return False
        if not fits(json.loads(whole.read(_ABOUT)), lines):
            return False
    if shutil.disk_usage(new.parent).free < size:
        raise InstallError(FULL_DISK, causes.DISK)
    # Created here, because concurrent threads that create the same folder can fail.
    for place in {(new / entry.filename).parent for entry in entries}:
        if new in [place, *place.parents]:
            place.mkdir(parents=True, exist_ok=True)

    def some(first: int) -> None:
        with zipfile.ZipFile(archive) as mine:
            for entry in entries[first::_THREADS]:
                mine.extract(entry, new)

    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(some, range(_THREADS)):
            pass
    return True
