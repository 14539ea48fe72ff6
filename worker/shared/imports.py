"""Imports of large libraries."""

from __future__ import annotations

import contextlib
import csv
import functools
import gc
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

_NAME = re.compile(r"^Name: *(\S+)", re.MULTILINE)
_VERSION = re.compile(r"^Version: *(\S+)", re.MULTILINE)


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import within it without work that is for nothing.

    Garbage collections find nothing in imports and take a sixth of the time. Later ones skip everything that exists at
    the end. transformers and trl would each list all installed packages, at 2 ms a package and more. Here trl
    gets the list of transformers, and it is made by `packages`.
    """
    listed, metadata.packages_distributions = metadata.packages_distributions, functools.cache(packages)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        metadata.packages_distributions = listed


def packages(path: list[str] | None = None) -> dict[str, list[str]]:
    """The distributions of each installed package, like `metadata.packages_distributions` of Python 3.12.

    `path` are the folders to look in, by default those of `sys.path`. It makes no object for each file, and does not
    look whether the file exists.
    """
    found: dict[str, list[str]] = {}
    for each in metadata.distributions(path=sys.path if path is None else path):
        about = _NAME.search(each.read_text("METADATA") or "")
        name = about[1] if about else each.metadata["Name"]
        for package in (each.read_text("top_level.txt") or "").split() or _top_level(_files(each)):
            found.setdefault(package, []).append(name)
    return found


def version(name: str) -> str:
    """An installed distribution's version, like `metadata.version`.

    That parses the whole description of a package, which takes milliseconds. Raises `metadata.PackageNotFoundError`.
    """
    about = _VERSION.search(metadata.distribution(name).read_text("METADATA") or "")
    return about[1] if about else metadata.version(name)


def _files(distribution: metadata.Distribution) -> Iterable[str]:
    record = distribution.read_text("RECORD")
    if record is None:
        return map(str, distribution.files or ())
    quoted = '"' in record
    lines = record.splitlines()
    return (row[0] for row in csv.reader(lines) if row) if quoted else (line.partition(",")[0] for line in lines)


def _top_level(files: Iterable[str]) -> set[str]:
    names = {file.partition("/")[0] if "/" in file else inspect.getmodulename(file) for file in files}
    return {name for name in names if name and "." not in name}
