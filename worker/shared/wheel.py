"""Builds the packages `worker` and `trainhop` as one wheel, small enough to send to a machine that has neither.

It can be imported directly (`sys.path`) or installed with pip. The same sources give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import worker

DISTRIBUTION = "trainhop-worker"
PACKAGES = ("trainhop", "worker")
NEEDED = ("httpx", "numpy", "pydantic", "safetensors", "stamina")
"""What a worker imports besides its training libraries. The other dependencies belong to the command line."""
NO_SESSION_NEEDS = (
    "trainhop/job_author.py",
    "trainhop/job_data.py",
    "trainhop/place_access.py",
    "trainhop/place_process.py",
    "trainhop/without_server.py",
    "worker/joined",
    "worker/notebook/place_cell.py",
    "worker/notebook/place_session.py",
    "worker/notebook/place_uplink.py",
    "worker/shared/data_checks",
    "worker/shared/installation.py",
    "worker/shared/joined_messages.py",
    "worker/shared/place_job.py",
    "worker/shared/session_process.py",
    "worker/shared/shared_places",
    "worker/training/end_counts.py",
    "worker/training/piece_counts.py",
    "worker/training/token_counts.py",
    "worker/training/token_preview.py",
)
"""Command line, server, and sessions without a server run them. What a server sends with each session must be small."""
ADAPTERS = ("worker/chat", "worker/export", "worker/shared/chat.py", "worker/shared/chat_limits.py")
"""Only sessions that export an adapter or chat with it need these."""

_SUFFIXES = (".py", ".jsonl", ".yaml")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel's file name, bytes and lower-case hex sha256."""

    name: str
    sha256: str
    data: bytes


def requirements(extra: str = "") -> list[str]:
    """What a worker needs, in pip's syntax: the light packages, or the pinned training libraries with `extra="train"`.

    Reads the metadata of whichever of the two distributions is installed. Empty if neither is.
    """
    for name in (DISTRIBUTION, "trainhop"):
        try:
            declared = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        parts = [line.partition(";") for line in declared]
        wanted = [line.strip() for line, _, marker in parts if _extra(marker) == extra]
        return wanted if extra else [line for line in wanted if re.split(r"[^\w.-]", line)[0] in NEEDED]
    return []


def _extra(marker: str) -> str:
    match = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
    return match[1] if match else ""


@cache
def build(*, adapters: bool = False) -> Wheel:
    """The wheel of the installed version, with `adapters` for a session that exports an adapter or chats with it.

    Needs its sources as files.
    """
    version = metadata.version("trainhop")
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    root = Path(worker.__file__).parent.parent
    found = [path for package in PACKAGES for path in sorted((root / package).rglob("*"))]
    left_out = (*NO_SESSION_NEEDS, *(() if adapters else ADAPTERS))
    sources = [path for path in found if path.suffix in _SUFFIXES and not is_within(path, root, left_out)]
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in sources}
    info = f"{stem}.dist-info"
    files[f"{info}/METADATA"] = _metadata(version).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: trainhop\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    data = packed.getvalue()
    return Wheel(name=f"{stem}-py3-none-any.whl", sha256=hashlib.sha256(data).hexdigest(), data=data)


def is_within(path: Path, root: Path, names: Iterable[str]) -> bool:
    """Whether `path` is one of these files and folders below `root`, or lies in one."""
    return not {root / name for name in names}.isdisjoint((path, *path.parents))


def _metadata(version: str) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {version}", "Requires-Python: >=3.11"]
    lines += [f"Requires-Dist: {line}" for line in requirements()]
    lines += ["Provides-Extra: train", *(f'Requires-Dist: {line}; extra == "train"' for line in requirements("train"))]
    return "\n".join(lines) + "\n"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
