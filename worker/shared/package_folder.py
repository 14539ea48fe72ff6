"""A folder of packages of a worker's own: nothing of the machine's environment changes under anybody's feet.

Standard library only. The folder lies on the worker's path before what the machine has. `about.json` in it says which set it
holds and for which machine, so that it is used again, here or on the next machine, only where it fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import py_compile
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from worker.shared import causes
from worker.shared.bounded_process import Limits
from worker.shared.packages import InstallError, bring, kept, lacking, set_key

STAGED = "trainhop-packages.bin"
"""The whole folder as one file, which a session leaves for later ones."""
FOLDER = "WORKER_PACKAGES"
"""The variable that tells a worker where its folder is."""
MAX_BYTES, MAX_FILES = 4 << 30, 200_000
"""Of a staged set once it is unpacked."""
_ABOUT = "about.json"
_MAX_ABOUT = 1 << 16
_THREADS = 4


def about(lines: Iterable[str]) -> dict[str, Any]:
    """What a folder with these requirements on this machine is: set, Python, and the packages that the machine keeps."""
    return {"key": set_key(lines), "python": "{}.{}".format(*sys.version_info), "kept": kept()}


def fits(found: Any, lines: Iterable[str]) -> bool:
    """Whether a folder that says this of itself can be used here.

    A machine without a GPU has the same image but for the builds of torch (`2.10.0+cpu`) and what only a GPU needs.
    """
    here = about(lines)
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


def home(lines: Iterable[str]) -> Path:
    """Where a person's machine keeps such a folder from one session to the next, one for each of its Pythons."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = json.dumps(about(lines), sort_keys=True).encode()
    return cache / "trainhop" / "packages" / hashlib.sha256(named).hexdigest()[:12]


def search_path(ours: Sequence[Path], inherited: str) -> str:
    """The worker's `PYTHONPATH`: our folders, and then what the machine's own says.

    An empty entry of it would be the current folder, where anything may lie.
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
    """Have whatever these requirements lack here in the folder; returns how: `here`, `kept`, `staged` or `installed`.

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
    """Write the folder as one file, with the byte code of whatever was imported out of it."""
    _keep_byte_code(folder)
    aside = target.with_name(f".{target.name}")
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder).as_posix())
    aside.replace(target)


def _keep_byte_code(folder: Path) -> None:
    """Have byte code count without its source's time, which a copy does not keep."""
    for path in folder.rglob("__pycache__/*.pyc"):
        source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
        path.unlink()
        if source.is_file():
            py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def unpack(archive: Path, folder: Path, lines: Sequence[str]) -> bool:
    """Have the folder made of a staged set; false, with nothing in its place, where that does not fit this machine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".packages-", dir=folder.parent) as aside:
            new = Path(aside, "new")
            if not _unpacked(archive, new, lines) or lacking(lines, new):
                return False
            shutil.rmtree(folder, ignore_errors=True)
            new.replace(folder)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, NotImplementedError):
        return False
    return True


def _unpacked(archive: Path, new: Path, lines: Sequence[str]) -> bool:
    with zipfile.ZipFile(archive) as whole:
        entries = whole.infolist()
        size = sum(entry.file_size for entry in entries)
        if len(entries) > MAX_FILES or size > MAX_BYTES or whole.getinfo(_ABOUT).file_size > _MAX_ABOUT:
            return False
        if not fits(json.loads(whole.read(_ABOUT)), lines):
            return False
    if shutil.disk_usage(new.parent).free < size:
        raise InstallError(
            "the disk of this machine is full: free some of it, or use a machine with a larger one", causes.DISK
        )

    for place in {
        (new / entry.filename).parent for entry in entries
    }:  # threads that make one folder trip each other up
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
