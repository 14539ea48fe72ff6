"""What this installation lacks, and the line that installs it, by the same installer and from the same place."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
"""The modules that a worker imports to train."""
SERVER = ("server", "kaggle", "drive")
"""The extras of a server with all its connections."""
_UVX = re.compile(r"[/\\](archive|environments|builds)-v\d+[/\\]")


def missing_modules(names: Sequence[str] = TRAINING) -> list[str]:
    """Those of the modules that cannot be imported here. Nothing is imported."""
    return [name for name in names if find_spec(name) is None]


def missing_packages(extra: str, declared: Sequence[str] | None = None) -> list[str]:
    """The packages of an extra that are not installed here, or not at the version that it pins.

    `declared` are the requirements of the distribution, by default those of this one.
    """
    found: list[str] = []
    for line in _declared() if declared is None else declared:
        need, _, marker = line.partition(";")
        if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker) and (lack := _lack(need.strip())):
            found.append(lack)
    return found


def _declared() -> Sequence[str]:
    try:
        return metadata.requires("trainhop") or []
    except metadata.PackageNotFoundError:
        return []


def _lack(need: str) -> str:
    name = re.split(r"[^\w.-]", need)[0]
    pinned = need.partition("==")[2]
    try:
        have = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} (needs {pinned})" if _is_exact(pinned) else name
    return f"{name} {have} (needs {pinned})" if _is_exact(pinned) and have != pinned else ""


def _is_exact(version: str) -> bool:
    return bool(version) and "*" not in version


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An installation: its environment and interpreter, and where it came from (PEP 610). Empty means an index."""

    prefix: Path
    python: str
    has_pip: bool
    origin: Mapping[str, Any]

    @classmethod
    def here(cls) -> Installation:
        """The one that runs."""
        try:
            origin = json.loads(metadata.distribution("trainhop").read_text("direct_url.json") or "{}")
        except (metadata.PackageNotFoundError, ValueError):
            origin = {}
        has_pip = find_spec("pip") is not None
        return cls(prefix=Path(sys.prefix), python=sys.executable, has_pip=has_pip, origin=origin)

    def line(self, *extras: str, torch: bool = False) -> str:
        """A shell command that adds extras to this installation, and torch if asked."""
        receipt = self.prefix / "uv-receipt.toml"
        if receipt.is_file():
            wanted = self._requirement({*extras, *_extras_of_tool(receipt)})
            return f"uv tool install --force {'--with torch ' if torch else ''}{wanted}"
        wanted = self._requirement(set(extras))
        if _UVX.search(f"{self.prefix}/"):
            return f"uvx {'--with torch ' if torch else ''}--from {wanted} trainhop up"
        python = shlex.quote(self.python)
        by = f"{python} -m pip install" if self.has_pip else f"uv pip install --python {python}"
        return f"{by} {'torch ' if torch else ''}{wanted}"

    def _requirement(self, extras: set[str]) -> str:
        """Trainhop with these extras, from where it was installed from, quoted for a shell."""
        name, origin = f"trainhop[{','.join(sorted(extras))}]", self.origin
        if origin.get("dir_info", {}).get("editable"):
            return "-e " + shlex.quote(f"{unquote(urlsplit(origin['url']).path)}{name.removeprefix('trainhop')}")
        if not origin:
            return shlex.quote(name)
        version = origin.get("vcs_info")
        if version is None:
            return shlex.quote(f"{name} @ {origin['url']}")
        revision = version.get("requested_revision") or version["commit_id"]
        return shlex.quote(f"{name} @ {version['vcs']}+{origin['url']}@{revision}")


def install_line(*extras: str, torch: bool = False) -> str:
    """A shell command that adds extras to the installation that runs, and torch if asked."""
    return Installation.here().line(*extras, torch=torch)


def _extras_of_tool(receipt: Path) -> set[str]:
    """The extras that `uv tool install` was asked for. It would forget them."""
    try:
        needs = tomllib.loads(receipt.read_text())["tool"]["requirements"]
        return {extra for need in needs if need.get("name") == "trainhop" for extra in need.get("extras", ())}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
