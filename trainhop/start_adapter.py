"""The adapter that a job continues from: a folder of this computer is uploaded, a job's name becomes its id."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainhop.connection import Connection, find_job
from trainhop.errors import Error

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_KEY = "lora_model_dir"


def send(
    connection: Connection,
    name: str,
    spec: dict[str, Any],
    *,
    candidates: Callable[[str], Sequence[Path]],
    sending: Callable[[str, int], object],
    may_send: Callable[[str, Path], bool],
) -> None:
    """Put the upload's hash or the job's id in place of `lora_model_dir`.

    `candidates` are the places of this computer for a path. The other arguments are as of `job_file.send_data`.
    """
    given = spec.get(_KEY)
    if not isinstance(given, str) or given.startswith("sha256:"):
        return
    found = next((each for each in candidates(given) if each.is_dir()), None)
    if found is not None:
        if not may_send(given, found):
            words = "the folder is outside the job file's folder, so it was not sent. Repeat with --yes to send it."
            raise _fault(name, given, words)
        spec[_KEY] = f"sha256:{_sent(connection, name, given, _files(name, given, candidates), sending)}"
    elif given.startswith((".", "/", "~", "\\")):
        raise _fault(name, given, "the folder does not exist")
    elif "/" not in given:  # a hub id has one, and the server refuses it
        spec[_KEY] = find_job(connection, given)["id"]


def _files(name: str, given: str, candidates: Callable[[str], Sequence[Path]]) -> list[Path]:
    """The two files of the folder."""
    found: list[Path] = []
    for file in _FILES:
        there = next((each for each in candidates(os.path.join(given, file)) if each.is_file()), None)  # noqa: PTH118
        if there is None:
            words = f"it has no {file}"
            if any(each.is_file() for each in candidates(os.path.join(given, "adapter_model.bin"))):  # noqa: PTH118
                words += (
                    ", and adapter_model.bin is a pickle, which is never read; save the adapter again with "
                    "model.save_pretrained(folder, safe_serialization=True)"
                )
            raise _fault(name, given, words)
        found.append(there)
    return found


def _sent(
    connection: Connection, name: str, given: str, files: Sequence[Path], sending: Callable[[str, int], object]
) -> str:
    """The sha256 under which the server keeps the files."""
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work) / "adapter.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in files:
                packed.write(file, file.name)
        sending(given, archive.stat().st_size)
        try:
            return connection.upload("/adapters", archive, name=files[0].resolve().parent.name or "adapter")["sha256"]
        except Error as error:
            if error.status is None or error.reason not in {"usage", "not_found"}:
                raise
            lines = error.lines if error.reason == "usage" else ("the server is too old for this key",)
            raise Error(*(f"{name}: {_KEY}: {line}" for line in lines), reason="usage", status=error.status) from error


def _fault(name: str, given: str, words: str) -> Error:
    return Error(f"{name}: {_KEY}: {given}: {words}", reason="usage")
