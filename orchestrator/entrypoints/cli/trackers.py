"""Commands for experiment trackers: your logins, and the runs of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.members import read_key
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, size, table
from orchestrator.entrypoints.cli.phrases import JobArgument, listed
from trainhop.connection import find_job, segment

app = typer.Typer(no_args_is_help=True, help="Experiment trackers: your logins, and the runs of a job.")
TrackerArgument = Annotated[str, typer.Argument(metavar="TRACKER", help="wandb, trackio or mlflow.")]
Json = dict[str, Any]


@app.command("ls")
def list_trackers(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the trackers that report_to can name. Keys are not shown."""
    items = listed(connect(context).get("/trackers"))
    if as_json:
        put_json(items)
        return
    rows = [(each["tracker"], each["url"], each["project"], each["problem"] or "ready") for each in items]
    table(("TRACKER", "ADDRESS", "PROJECT", "STATE"), rows)


@app.command("set")
def set_tracker(
    context: typer.Context,
    tracker: TrackerArgument,
    key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file with the key, or - for stdin (default: prompt, or no key)."),
    ] = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="The server of MLflow, a Space (OWNER/NAME), or a server of your own.")
    ] = "",
    project: Annotated[
        str, typer.Option(metavar="NAME", help="Project or experiment there, also ENTITY/NAME for wandb.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Store a login. It is encrypted, only the server uses it, and machines never get it."""
    body = {"url": url, "key": read_key(key_file), "project": project}
    kept = connect(context).put(f"/trackers/{segment(tracker)}", body)
    put_json(kept) if as_json else say(f"stored your login for {clean(kept['tracker'])}")


@app.command("rm")
def remove_tracker(context: typer.Context, tracker: TrackerArgument) -> None:
    """Remove your login. What was written stays at the tracker."""
    connect(context).delete(f"/trackers/{segment(tracker)}")
    say(f"removed your login for {clean(tracker)}")


@app.command("show")
def show_runs(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show a job's runs: how far each was written, and why it waits."""
    client = connect(context)
    items = listed(client.get(f"/jobs/{find_job(client, job)['id']}/trackers"))
    if as_json:
        put_json(items)
        return
    table(
        ("TRACKER", "STEP", "STATE", "ADDRESS"), [(r["tracker"], r["written_step"], _state(r), r["url"]) for r in items]
    )


def _state(run: Json) -> str:
    if run["gave_up_at"] is not None:
        return f"given up: {run['reason']}"
    return run["told"] or run["reason"] or "open"


@app.command("file")
def event_file(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder for TensorBoard. Default: JOB-tensorboard.")
    ] = None,
) -> None:
    """Download a job's event file for TensorBoard. An earlier one in the folder is replaced."""
    client = connect(context)
    job_id = find_job(client, job)["id"]
    folder = out or Path(f"{job_id}-tensorboard")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{job_id}"
    aside = path.with_name("download.part")
    with client.stream(f"/jobs/{job_id}/tensorboard", {}) as answer, aside.open("wb") as file:
        for chunk in answer.iter_bytes():
            file.write(chunk)
    aside.replace(path)
    put(str(folder))
    say(f"{size(path.stat().st_size)}. See it with: tensorboard --logdir {folder}")
