"""Job files of the command line: from a file or stdin, with `--set KEY=VALUE`.

Errors of a job file contain the file's name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.output import clean, say, size
from trainhop import job_file
from trainhop.errors import Error, where


def read(path: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The job file (YAML or JSON, `-` for stdin) with `key=value` changes. Raises `Error` with line and column."""
    data = job_file.parse(path, sys.stdin.read()) if path == "-" else job_file.read(Path(path))
    for change in changes:
        _apply(data, change)
    return data


def assignments(changes: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as a mapping. Values are read as YAML. Dots select nested keys."""
    data: dict[str, Any] = {}
    for change in changes:
        _apply(data, change)
    return data


def changed(spec: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The top-level keys that `key=value` pairs change, with their new values."""
    for change in changes:
        _apply(spec, change)
    return {key: spec[key] for key in dict.fromkeys(change.partition("=")[0].partition(".")[0] for change in changes)}


def _apply(data: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise CommandError(Exit.USAGE, f"--set {change}: expected key=value")
    *path, last = key.split(".")
    place: Any = data
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = job_file.parse_yaml(f"--set {key}", value)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CommandError(Exit.USAGE, f"--set {change}: the job file has no such key") from error


def send_data(
    client: Client, path: str, spec: dict[str, Any], changes: Sequence[str] = (), *, yes: bool = False
) -> dict[str, Any]:
    """The job as `trainhop.job_file.send_data` returns it.

    The job file may be another person's. So a file outside its folder is sent only if the user agrees, or has named it
    in a change.
    """
    folder = None if path == "-" else Path(path).parent

    def may_send(name: str, file: Path) -> bool:
        inside = file.resolve().is_relative_to((folder or Path()).resolve())
        if yes or inside or any(name in change.partition("=")[2] for change in changes):
            return True
        if path == "-" or not sys.stdin.isatty():
            return False
        question = f"{path} names {clean(file.resolve())}, which is outside its folder. Send it to the server?"
        return typer.confirm(question, err=True)

    return job_file.send_data(
        client,
        path,
        spec,
        folder=folder,
        sending=lambda name, count: say(f"uploading {name} ({size(count)})"),
        unused=lambda name, keys: say(f"not used in {name}: {clean(', '.join(keys))}"),
        may_send=may_send,
    )


@contextmanager
def named(path: str) -> Iterator[None]:
    """Prefix the server's validation errors with the job file's name."""
    try:
        yield
    except Error as error:
        if error.status is None or error.reason != "usage":
            raise
        faults = [f"{where(pointer)}: {detail}" for pointer, detail in error.problems] or error.lines
        raise CommandError(Exit.USAGE, *(f"{path}: {fault}" for fault in faults)) from error
