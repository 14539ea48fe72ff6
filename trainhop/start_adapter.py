"""The adapter that a job continues from: a folder of this computer is uploaded, a job's name becomes its id."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
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
    folder: Path | None,
    sending: Callable[[str, int], object],
    may_send: Callable[[str, Path], bool],
) -> None:
    """Put the upload's hash or the job's id in place of `lora_model_dir`. Arguments as of `job_file.send_data`."""
    given = spec.get(_KEY)
    if not isinstance(given, str) or given.startswith("sha256:"):
        return
    found = _local(given, folder)
    if found is not None:
        if not may_send(given, found):
            words = "the folder is outside the job file's folder, so it was not sent. Repeat with --yes to send it."
            raise _fault(name, given, words)
        spec[_KEY] = f"sha256:{_sent(connection, name, given, found, sending)}"
    elif given.startswith((".", "/", "~", "\\")):
        raise _fault(name, given, "the folder does not exist")
    elif "/" not in given:  # a hub id has one, and the server refuses it
        spec[_KEY] = find_job(connection, given)["id"]


def _local(given: str, folder: Path | None) -> Path | None:
    path = Path(os.path.expanduser(given))  # noqa: PTH111  does not fail for an unknown user
    return next((each for each in (path, *([folder / given] if folder is not None else [])) if each.is_dir()), None)


def _sent(connection: Connection, name: str, given: str, adapter: Path, sending: Callable[[str, int], object]) -> str:
    """The sha256 under which the server keeps the two files of the folder."""
    for file in _FILES:
        if not (adapter / file).is_file():
            words = f"it has no {file}"
            if (adapter / "adapter_model.bin").is_file():
                words += (
                    ", and adapter_model.bin is a pickle, which is never read; save the adapter again with "
                    "model.save_pretrained(folder, safe_serialization=True)"
                )
            raise _fault(name, given, words)
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work) / "adapter.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in _FILES:
                packed.write(adapter / file, file)
        sending(given, archive.stat().st_size)
        try:
            return connection.upload("/adapters", archive, name=adapter.resolve().name or "adapter")["sha256"]
        except Error as error:
            if error.status is None or error.reason not in {"usage", "not_found"}:
                raise
            lines = error.lines if error.reason == "usage" else ("the server is too old for this key",)
            raise Error(*(f"{name}: {_KEY}: {line}" for line in lines), reason="usage", status=error.status) from error


def _fault(name: str, given: str, words: str) -> Error:
    return Error(f"{name}: {_KEY}: {given}: {words}", reason="usage")
