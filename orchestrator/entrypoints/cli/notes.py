"""The command for the note of a job."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json
from orchestrator.entrypoints.cli.phrases import JobArgument
from trainhop.connection import find_job

app = typer.Typer()


@app.command("note", rich_help_panel="Jobs")
def note(
    context: typer.Context,
    job: JobArgument,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help='The new note, at most 500 characters. "" removes it.')
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a note on a job, which all who see the job can read. Without TEXT, show the note."""
    client = connect(context)
    record = find_job(client, job)
    if text is None:
        kept = {"note": record.get("note", "")}  # an older server knows none
    else:
        kept = client.put(f"/jobs/{record['id']}/note", {"note": text})
    put_json(kept) if as_json else put(clean(kept["note"], one_line=False) or "no note")
