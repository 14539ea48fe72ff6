"""`trainhop adapter`: a finished job's adapter as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.output import JsonFlag, put, put_json, say, size
from orchestrator.entrypoints.cli.phrases import JobArgument
from trainhop.connection import find_job
from trainhop.download import WEIGHTS, save_adapter

app = typer.Typer()


@app.command(rich_help_panel="Records")
def adapter(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the adapter. Default: JOB-adapter.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Download a job's adapter as a PEFT folder."""
    client = connect(context)
    record = find_job(client, job)
    folder = out or Path(f"{record['id']}-adapter")
    save_adapter(client, record, folder)
    if as_json:
        put_json({"path": str(folder), **record["adapter"]})
    else:
        put(str(folder))
        say(f"{WEIGHTS}: sha256 {record['adapter']['sha256']} ({size((folder / WEIGHTS).stat().st_size)}), verified")
