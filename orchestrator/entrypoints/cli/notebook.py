"""`trainhop notebook`: a file to open in Colab, Kaggle or Jupyter and to run there, or a link that opens it in Colab."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect, find_job
from orchestrator.entrypoints.cli.output import JsonFlag, moment, put, put_json, say
from orchestrator.entrypoints.cli.phrases import JobArgument

app = typer.Typer()


@app.command(rich_help_panel="Jobs")
def notebook(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; by default after the job's name.")
    ] = None,
    reach: Annotated[
        str | None,
        typer.Option(
            metavar="http|drive", help="How it reaches the server; by default whichever works from elsewhere."
        ),
    ] = None,
    drive: Annotated[
        bool,
        typer.Option(
            "--drive", help="Put it into your Google Drive instead and print the link that opens it in Colab."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a notebook that trains your job in Colab, Kaggle or Jupyter; you open and run it."""
    client = connect(context)
    if drive and out is not None:
        raise CommandError(Exit.USAGE, "either --out FILE or --drive says where it goes")
    if out is not None and out.exists():
        raise CommandError(Exit.USAGE, f"{out} exists; name another file with --out")
    query = {"reach": reach, "drive": drive or None}
    made = client.send("POST", f"/jobs/{find_job(client, job)['id']}:notebook", query=query).json()
    if drive:
        place, how = made["url"], "open the link"
    else:
        path = _write(out or Path(made["file_name"]), json.dumps(made["notebook"], indent=1), numbered=out is None)
        place, how = str(path), "open it in Colab (File > Upload notebook), Kaggle or Jupyter"
    if as_json:
        put_json({"path": None if drive else place, **{k: v for k, v in made.items() if k != "notebook"}})
        return
    put(place)
    say(f"{how} and run its cell; good once, until {moment(made['expires_at'])}")
    if made["note"]:
        say(f"note: {made['note']}")


def _write(path: Path, text: str, *, numbered: bool) -> Path:
    """A new file, readable by its owner alone: it holds a code. Never writes over another one."""
    names = (path if n == 1 else path.with_stem(f"{path.stem}-{n}") for n in count(1)) if numbered else iter([path])
    for name in names:
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise CommandError(Exit.USAGE, f"{name} cannot be written: {error.strerror}") from error
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return name
    raise CommandError(Exit.USAGE, f"{path} exists; name another file with --out")
