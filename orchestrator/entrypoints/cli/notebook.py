"""`trainhop notebook`: a file for a notebook editor, or a link that opens it there."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, moment, put, put_json, say
from orchestrator.entrypoints.cli.phrases import JobArgument
from trainhop.connection import find_job
from worker.shared.files import create_once

app = typer.Typer()


@app.command(rich_help_panel="Jobs")
def notebook(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to save it (default: the job's name).")
    ] = None,
    reach: Annotated[
        str | None, typer.Option(metavar="http|drive", help="How it connects to the server (default: automatic).")
    ] = None,
    drive: Annotated[
        bool, typer.Option("--drive", help="Save it to your Google Drive and print the link that opens it.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a notebook that trains your job. You open and run it in a notebook editor."""
    from worker.shared.places import EDITORS

    client = connect(context)
    if drive and out is not None:
        raise CommandError(Exit.USAGE, "--out and --drive exclude each other. Use only one of them.")
    if out is not None and out.exists():
        raise CommandError(Exit.USAGE, f"{out} already exists. Choose another file with --out.")
    query = {"reach": reach, "drive": drive or None}
    made = client.send("POST", f"/jobs/{find_job(client, job)['id']}:notebook", query=query).json()
    if drive:
        place, how = made["url"], "Open the link"
    else:
        path = _write(out or Path(made["file_name"]), json.dumps(made["notebook"], indent=1), numbered=out is None)
        place, how = str(path), f"Open it in {EDITORS}"
    if as_json:
        put_json({"path": None if drive else place, **{k: v for k, v in made.items() if k != "notebook"}})
        return
    put(place)
    say(f"{how} and run its cell. It works once, until {moment(made['expires_at'])}.")
    if made["note"]:
        say(f"note: {made['note']}")


def _write(path: Path, text: str, *, numbered: bool) -> Path:
    """Write a new file that only its owner can read, because it has a code. Never overwrites a file."""
    names = (path if n == 1 else path.with_stem(f"{path.stem}-{n}") for n in count(1)) if numbered else iter([path])
    for name in names:
        try:
            made = create_once(name, text)
        except OSError as error:
            raise CommandError(Exit.USAGE, f"Could not write {name}: {error.strerror}") from error
        if made:
            return name
    raise CommandError(Exit.USAGE, f"{path} already exists. Choose another file with --out.")
