"""Reads the JSON files beside the weights of a model or an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worker.export.errors import ExportError

MAX_BYTES = 128 << 20
"""A tokenizer with a large vocabulary has 35 MB."""


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file. Raises `ExportError`, which ends with the remedy."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read as JSON; {remedy}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} is not an object; {remedy}")
    return found


def read_optional(path: Path, remedy: str) -> dict[str, Any]:
    """The same, and an empty object if there is no such file."""
    return read_object(path, remedy) if path.is_file() else {}
