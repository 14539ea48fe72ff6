"""What the commands for exports share: their options, and saving or printing the file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.output import put


class Form(StrEnum):
    """Formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"


FormOption = Annotated[Form, typer.Option("--format", help="The format of the file.")]
OutOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Where to save it. Default: print it.")]


def refuse_existing(out: Path | None) -> None:
    """Raise `CommandError` if the file exists."""
    if out is not None and out.exists():
        raise CommandError(Exit.USAGE, f"{out} already exists. Choose another file with --out.")


def save(client: Client, path: str, form: Form, out: Path | None) -> None:
    """Save the export as `out`, or print it."""
    content, _ = client.text(path, format=form.value)
    if out is None:
        put(content.decode().rstrip("\n"))
        return
    out.write_bytes(content)
    put(str(out))
