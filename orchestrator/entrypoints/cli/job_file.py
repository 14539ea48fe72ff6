"""Job files: reading them, checking them before anything is sent, and sending the data they name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, ProblemError, where
from orchestrator.entrypoints.cli.output import say, size

if TYPE_CHECKING:
    from yaml import MappingNode, Node, SafeLoader

    from worker.shared.messages import JobSpec

_DATA_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".parquet"}


def read(path: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The job file (YAML or JSON, `-` for stdin) with `key=value` changes; raises `CommandError` with line and column."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(Exit.USAGE, f"{path}: {getattr(error, 'strerror', None) or error}") from error
    data = _parse(path, text)
    if not isinstance(data, dict):
        raise CommandError(Exit.USAGE, f"{path}: a job file is a mapping of keys to values")
    for change in changes:
        _apply(data, change)
    return data


def _parse(path: str, text: str) -> Any:
    if path.endswith(".json"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise CommandError(Exit.USAGE, f"{path}:{error.lineno}:{error.colno}: {error.msg}") from error
    return _yaml(path, text)


def _yaml(path: str, text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _strict())  # noqa: S506  a safe loader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise CommandError(Exit.USAGE, f"{path}{spot}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a 13th month, thousands of digits
        raise CommandError(Exit.USAGE, f"{path}: {' '.join(str(error).split())}") from error


def _strict() -> type[SafeLoader]:
    """A loader that refuses a key which is there twice: YAML's own takes the last, and nobody sees the first."""
    import yaml
    from yaml.composer import ComposerError

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: dict[Any, Node]) -> MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise ComposerError(None, None, f"the key '{key.value}' is there twice", key.start_mark)
                seen.add(str(key.value))
            return node

    return Strict


def assignments(changes: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as a mapping; values are read as YAML, dots lead into nested keys."""
    data: dict[str, Any] = {}
    for change in changes:
        _apply(data, change)
    return data


def changed(spec: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The keys of a job file that `key=value` pairs touch, as they are afterwards."""
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
        place[int(last) if isinstance(place, list) else last] = _yaml(f"--set {key}", value)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CommandError(Exit.USAGE, f"--set {change}: there is no such place in the job file") from error


def check(path: str, data: dict[str, Any]) -> JobSpec:
    """The job if the file is right; otherwise one line for each fault, without asking a server."""
    from pydantic import ValidationError

    from worker.shared.messages import JobSpec
    from worker.shared.spec_errors import explain

    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        lines = [f"{path}: {where(pointer)}: {sentence}" for pointer, sentence in explain(error)]
        raise CommandError(Exit.USAGE, *lines) from error


def send_data(client: Client, path: str, spec: JobSpec) -> dict[str, Any]:
    """The job as JSON, with every dataset that is a file of this computer uploaded and named by its hash."""
    body = spec.model_dump(mode="json", exclude_unset=True)
    for entry in body["datasets"]:
        file = _local(entry["path"], path)
        if file is None:
            continue
        say(f"sending {entry['path']} ({size(file.stat().st_size)})")
        try:
            sent = client.upload("/datasets", file, name=file.name, type=entry.get("type", "auto"))
        except ProblemError as error:
            if error.code is not Exit.USAGE:
                raise
            raise CommandError(Exit.USAGE, f"{path}: datasets: {error.message}") from error
        entry["path"] = f"sha256:{sent['sha256']}"
    return body


def _local(name: str, job_file: str) -> Path | None:
    """The file as seen from here or from the job file's folder; None where the name means something to the server."""
    if name.startswith("sha256:"):
        return None
    given = Path(name).expanduser()
    beside = [] if job_file == "-" else [Path(job_file).parent / given]
    for candidate in (given, *beside):
        if candidate.is_file():
            return candidate
    if not given.is_absolute() and given.suffix.lower() in _DATA_SUFFIXES:
        raise CommandError(Exit.USAGE, f"{job_file}: datasets: {name}: no such file")
    return None


@contextmanager
def named(path: str) -> Iterator[None]:
    """Put the job file's name before what the server says is wrong with it."""
    try:
        yield
    except ProblemError as error:
        if error.code is not Exit.USAGE:
            raise
        faults = [f"{where(pointer)}: {detail}" for pointer, detail in error.problems] or [error.message]
        raise CommandError(Exit.USAGE, *(f"{path}: {fault}" for fault in faults)) from error
