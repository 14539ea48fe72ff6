"""Tiny wheels in a folder that stands for pip's index, and machines that are nothing but a few folders."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def wheel(
    folder: Path, name: str, version: str, *needs: str, code: str = "", more: dict[str, bytes] | None = None
) -> None:
    """Write a wheel of one module with that name."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {f"{name}/__init__.py": f"__version__ = {version!r}\n{code}".encode()} | (more or {})
    lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def have(folder: Path, name: str, version: str, code: str = "") -> None:
    """Put a package into a folder of the path, as an image does."""
    wheel(folder / ".wheels", name, version, code=code)
    with zipfile.ZipFile(folder / ".wheels" / f"{name}-{version}-py3-none-any.whl") as archive:
        archive.extractall(folder)


def list_package(folder: Path, name: str, version: str) -> None:
    """Have a folder of the path say that it holds a package, without any code of it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
