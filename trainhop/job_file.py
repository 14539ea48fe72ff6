"""Job files: read them, validate them locally, and upload their local data files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainhop import start_adapter
from trainhop.connection import Connection
from trainhop.errors import Error, where
from trainhop.own_worker import own_worker

if TYPE_CHECKING:
    from yaml import MappingNode, Node, SafeLoader


_TEMPLATE_SUFFIXES, MAX_TEMPLATE = {".jinja", ".jinja2", ".j2", ".txt"}, 1 << 20
"""Endings of a file with a chat template, and the characters of it that are read. The server accepts fewer."""
_DATA_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}

SCHEMA = Path(__file__).with_name("job_schema.json")
"""The JSON Schema of a job file, for editors. A server has it under `SCHEMA_PATH`."""
SCHEMA_PATH = "/schemas/job.json"


def __getattr__(name: str) -> Any:
    """Import `JobSpec` on first use, because it needs pydantic."""
    if name != "JobSpec":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with own_worker():
        from worker.shared.job_spec import JobSpec

        return JobSpec


def read(path: Path) -> dict[str, Any]:
    """Read a job file (YAML or JSON). Raises `Error` with line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Error(f"{path}: {error.strerror or error}", reason="usage") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Error(f"{path}:{line}: this is not UTF-8 text. Save the file as UTF-8.", reason="usage") from error
    return parse(str(path), text)


def parse(name: str, text: str) -> dict[str, Any]:
    """Parse the text of a job file. `name` is used in errors. A text with a name that ends in `.json` is JSON."""
    data = _json(name, text) if name.endswith(".json") else parse_yaml(name, text)
    if not isinstance(data, dict):
        raise Error(f"{name}: this is not a mapping of keys to values. See the job file reference.", reason="usage")
    return data  # pyright: ignore[reportUnknownVariableType] - what a file holds is checked by `check`


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Error(f"{name}:{error.lineno}:{error.colno}: {error.msg}", reason="usage") from error
    except RecursionError:
        raise Error(f"{name}: it is nested too deeply. Remove some levels.", reason="usage") from None
    except ValueError as error:  # thousands of digits
        raise Error(f"{name}: {' '.join(str(error).split())}", reason="usage") from error


def parse_yaml(name: str, text: str) -> Any:
    """Parse any YAML. Raises `Error` with line and column."""
    import yaml

    try:
        return yaml.load(text, _strict())  # noqa: S506  a safe loader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise Error(f"{name}{spot}: {error.problem or error.context}", reason="usage") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        spot = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        message = f"{name}:{spot}: the character U+{error.character:04X} is not allowed. Remove it."
        raise Error(message, reason="usage") from error
    except ValueError as error:  # a 13th month, thousands of digits
        why = str(error).partition(":")[0]  # what follows is advice for programmers
        message = f"{name}: a date or a number is not valid ({why}). Correct it, or put it in quotes if it is text."
        raise Error(message, reason="usage") from error
    except RecursionError as error:
        raise Error(f"{name}: this is nested too deeply. Use fewer levels.", reason="usage") from error
    except yaml.YAMLError as error:
        raise Error(f"{name}: {' '.join(str(error).split())}", reason="usage") from error


def _strict() -> type[SafeLoader]:
    """A loader that refuses duplicate keys. YAML's own loader silently takes the last value."""
    import yaml
    from yaml.composer import ComposerError

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: dict[Any, Node]) -> MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise ComposerError(None, None, f"duplicate key '{key.value}'", key.start_mark)
                seen.add(str(key.value))
            return node

    return Strict


def check(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The job as JSON if it is valid. Otherwise raises `Error` with one line for each fault. It calls no server."""
    with own_worker():
        from pydantic import ValidationError

        from worker.shared.job_spec import JobSpec
        from worker.shared.spec_errors import explain

        try:
            return JobSpec.model_validate(data).model_dump(mode="json", exclude_unset=True)
        except ValidationError as error:
            lines = [f"{name}: {where(pointer)}: {sentence}" for pointer, sentence in explain(error)]
            raise Error(*lines, reason="usage") from error


def send_data(
    connection: Connection,
    name: str,
    spec: dict[str, Any],
    *,
    folder: Path | None = None,
    within: Sequence[Path] | None = None,
    sending: Callable[[str, int], object] = lambda _name, _bytes: None,
    unused: Callable[[str, list[str]], object] = lambda _name, _keys: None,
    may_send: Callable[[str, Path], bool] = lambda _name, _file: True,
) -> dict[str, Any]:
    """The job, with every data file of this computer, those of `evaluate` included, uploaded and named by its hash.

    A file may also be in the job file's `folder`. `sending` is called with the name and the size of each before its
    upload, `unused` with the name and the keys of its rows that training does not use, and `may_send` with its name and
    its path. With `within`, a file outside these folders counts as one that does not exist.
    """
    spec = deepcopy(spec)
    put_template(spec, name, candidates(spec.get("chat_template_jinja"), folder, within), may_send)
    start_adapter.send(
        connection,
        name,
        spec,
        candidates=lambda path: candidates(path, folder, within),
        sending=sending,
        may_send=may_send,
    )
    entries: list[tuple[str, str, dict[str, Any]]] = [("datasets", "auto", each) for each in spec["datasets"]]
    asked: dict[str, Any] = spec.get("evaluate") or {}
    kinds = {"prompts": "auto", "tasks": "task"}
    entries += [(f"evaluate.{key}", kind, asked[key]) for key, kind in kinds.items() if asked.get(key)]
    for place, kind, entry in entries:
        file = local_file(entry["path"], f"{name}: {place}", candidates(entry["path"], folder, within))
        if file is None:
            continue
        if not may_send(entry["path"], file):
            raise Error(
                f"{name}: {place}: {entry['path']}: the file is outside the job file's folder, so it was not sent. "
                "Repeat with --yes to send it.",
                reason="usage",
            )
        sending(entry["path"], file.stat().st_size)
        try:
            sent = connection.upload("/datasets", file, **_query(file.name, entry, kind))
        except Error as error:
            if error.status is None or error.reason != "usage":
                raise
            line = f"{name}: {place}: {'; '.join(error.lines)}"
            raise Error(line, reason="usage", status=error.status, problems=error.problems) from error
        if keys := sent.get("unused_keys"):  # an older server does not name them
            unused(entry["path"], keys)
        entry["path"] = f"sha256:{sent['sha256']}"
        for key in sent.get("columns") or ():  # the kept file has the usual names; an older server refuses the keys
            entry.pop(key, None)
    return spec


def candidates(path: Any, folder: Path | None, within: Sequence[Path] | None) -> list[Path]:
    """The places of this computer where a file of a job file may lie. Files elsewhere are not even looked for."""
    if not isinstance(path, str) or "\0" in path:
        return []
    given = Path(os.path.expanduser(path))  # noqa: PTH111  does not fail for an unknown user
    found = [given, *([folder / given] if folder is not None else [])]
    if within is None:
        return found
    found += [each / given for each in within]
    allowed = [each.resolve() for each in within]
    return [file for file in found if any(file.resolve().is_relative_to(each) for each in allowed)]


def put_template(spec: dict[str, Any], name: str, files: Sequence[Path], may_send: Callable[[str, Path], bool]) -> None:
    """Put the text of a template's file in place of its path."""
    given = spec.get("chat_template_jinja")
    if not isinstance(given, str) or Path(given).suffix not in _TEMPLATE_SUFFIXES or "{" in given or "\n" in given:
        return
    file = next((each for each in files if each.is_file()), None)
    fault = "the file does not exist"
    if file is not None and not may_send(given, file):
        fault = "the file is outside the job file's folder, so it was not sent. Repeat with --yes to send it."
    elif file is not None:
        try:
            with file.open(encoding="utf-8") as stream:
                spec["chat_template_jinja"] = stream.read(MAX_TEMPLATE)
            return
        except (OSError, ValueError) as error:
            fault = str(error)
    raise Error(f"{name}: chat_template_jinja: {given}: {fault}", reason="usage")


def _query(name: str, entry: Mapping[str, Any], kind: str) -> dict[str, str]:
    query = {"name": name, "type": entry.get("type", kind)}
    if not entry.keys() - {"path", "type", "split"}:
        return query
    with own_worker():
        from worker.shared.dataset_spec import MAPPING
    columns = {key: entry[key] for key in MAPPING if entry.get(key)}
    return query | ({"columns": json.dumps(columns)} if columns else {})


def local_file(path: str, name: str, files: Sequence[Path]) -> Path | None:
    """The first of the files that exists. None if the path means something to the server."""
    if path.startswith("sha256:"):
        return None
    for each in files:
        if each.is_file():
            return each
    suffix = Path(path.lower().removesuffix(".gz")).suffix
    if not Path(os.path.expanduser(path)).is_absolute() and suffix in _DATA_SUFFIXES:  # noqa: PTH111
        raise Error(f"{name}: {path}: the file does not exist", reason="usage")
    return None
