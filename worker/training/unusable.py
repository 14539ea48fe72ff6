"""Packages that the training libraries reject instead of ignoring, and how they are hidden.

An image contains packages that the session never uses. If such a package is too old, some libraries raise an error as
soon as they check for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from worker.shared import imports

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class Refused:
    """`function` of `library` raises if `package` is older than `lowest`, or `needs` is missing or too old."""

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
"""A test compares it with the source of the libraries."""


def hide(table: Sequence[Refused] = TABLE) -> list[str]:
    """Make each outdated package in `table` look absent to Python. Returns their names.

    Call it before a training library is imported, and again after a newer version was installed.
    """
    hidden = [entry.package for entry in table if _is_refused(entry)]
    for entry in table:
        if entry.package in hidden:
            sys.modules[entry.package] = None  # pyright: ignore[reportArgumentType] - Python's own way to say "absent"
        elif entry.package in sys.modules and sys.modules[entry.package] is None:
            del sys.modules[entry.package]
    return hidden


def uses_bitsandbytes(spec: JobSpec) -> bool:
    """Whether the job needs bitsandbytes, whatever the backend."""
    return spec.adapter == "qlora" or "8bit" in spec.optimizer


def hide_bitsandbytes() -> None:
    """Make bitsandbytes look absent, unless PEFT has already imported it.

    PEFT imports it wherever it is installed. With the compiler of torch that it loads, this takes a second.
    """
    if "peft" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # pyright: ignore[reportArgumentType] - Python's own way to say "absent"


def _is_refused(entry: Refused) -> bool:
    if _version(entry.package) is None:
        return False
    wanted = [(entry.package, entry.lowest), *([entry.needs] if entry.needs else [])]
    return any((version := _version(name)) is None or version < Version(lowest) for name, lowest in wanted)


def _version(package: str) -> Version | None:
    try:
        return Version(imports.version(package))
    except metadata.PackageNotFoundError:
        return None
    except InvalidVersion:
        return Version("0")
