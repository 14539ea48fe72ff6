"""The worker as one wheel, made on the spot: small enough to be sent to a machine that has no trainhop.

It is importable where it lies (`sys.path`), and pip can install it. The same sources give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import worker

DISTRIBUTION = "trainhop-worker"
NEEDED = ("httpx", "numpy", "pydantic", "safetensors", "stamina")
"""What a worker imports besides its training libraries; the distribution's other dependencies are the command line's."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel's file name, bytes and lower-case hex sha256."""

    name: str
    sha256: str
    data: bytes


def requirements(extra: str = "") -> list[str]:
    """What a worker needs, as pip writes it: the light ones, or with `extra="train"` the pinned training libraries.

    Asks whichever of the two distributions is there; only where neither is does it find nothing.
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
    found = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
    return found[1] if found else ""


@cache
def build() -> Wheel:
    """The wheel of the worker that is installed here; needs its sources as files."""
    version = metadata.version("trainhop")
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    root = Path(worker.__file__).parent
    files = {f"worker/{path.relative_to(root).as_posix()}": path.read_bytes() for path in sorted(root.rglob("*.py"))}
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


def _metadata(version: str) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {version}", "Requires-Python: >=3.11"]
    lines += [f"Requires-Dist: {line}" for line in requirements()]
    lines += ["Provides-Extra: train", *(f'Requires-Dist: {line}; extra == "train"' for line in requirements("train"))]
    return "\n".join(lines) + "\n"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
