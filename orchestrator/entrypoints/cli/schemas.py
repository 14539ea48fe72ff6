"""The settings in a driver's schema: lists them, and prompts for missing ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit


def rows(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each setting with an example of its value and its description. The example is the default, if there is one."""
    for key, each in schema.get("properties", {}).items():
        default = each.get("default")
        words = each.get("description", "")
        yield key, "VALUE" if default in (None, "") else str(default), words + _required_note(schema, key)


def _required_note(schema: dict[str, Any], key: str) -> str:
    return " Required." if key in schema.get("required", []) else ""


def ask_missing(schema: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` with every needed setting. Prompts at a terminal for missing ones.

    Without a terminal it raises an error that names them.
    """
    texts = {key: each.get("description", "") for key, each in schema.get("properties", {}).items()}
    missing = [(key, texts.get(key, "")) for key in schema.get("required", []) if key not in given]
    if missing and not sys.stdin.isatty():
        lines = [f"--set {key}=... is missing: {words}" for key, words in missing]
        raise CommandError(Exit.USAGE, *lines)
    return given | {key: typer.prompt(f"{words} {key}".strip(), err=True) for key, words in missing}
