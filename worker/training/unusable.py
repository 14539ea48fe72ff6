"""Packages that the training libraries refuse instead of ignoring, and hiding those that are too old here.

An image ships what nobody asked for. Where such a package is too old for them, some of the libraries raise as soon as they
only ask whether it is there, though the session would never use it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata

from packaging.version import InvalidVersion, Version


@dataclass(frozen=True, kw_only=True)
class Refused:
    """`function` of `library` raises for a `package` below the version `lowest`, or where `needs` is missing or too old."""

    package: str
    lowest: str
    library: str
    function: str
    needs: tuple[str, str] | None = None


TABLE = (
    Refused(package="torchao", lowest="0.16.0", library="peft", function="is_torchao_available"),
    Refused(
        package="gptqmodel",
        lowest="7.0.0",
        library="peft",
        function="is_gptqmodel_available",
        needs=("optimum", "1.24.0"),
    ),
)
"""A test holds it against the source of the libraries."""


def hide() -> list[str]:
    """Make Python say of each package that is too old here that it is absent; returns which.

    To be called before a training library is imported, and again after a newer version has been brought in.
    """
    hidden = [entry.package for entry in TABLE if _is_refused(entry)]
    for entry in TABLE:
        if entry.package in hidden:
            sys.modules[entry.package] = None  # pyright: ignore[reportArgumentType] - Python's own way to say "absent"
        elif entry.package in sys.modules and sys.modules[entry.package] is None:
            del sys.modules[entry.package]
    return hidden


def _is_refused(entry: Refused) -> bool:
    if _version(entry.package) is None:
        return False
    wanted = [(entry.package, entry.lowest), *([entry.needs] if entry.needs else [])]
    return any((found := _version(name)) is None or found < Version(lowest) for name, lowest in wanted)


def _version(package: str) -> Version | None:
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None
    except InvalidVersion:
        return Version("0")
