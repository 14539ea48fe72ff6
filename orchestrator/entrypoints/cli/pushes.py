"""`trainhop push`: an adapter to the Hugging Face hub."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say
from orchestrator.entrypoints.cli.phrases import JobArgument, listed
from trainhop.connection import find_job
from trainhop.errors import Error
from trainhop.polling import PATIENCE_S, PERIOD_S

app = typer.Typer()
Json = dict[str, Any]


@app.command(rich_help_panel="Records")
def push(
    context: typer.Context,
    job: JobArgument,
    to: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="The repository. Default: that of the last push, or of the job file."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Allow a public repository. A new one is public.")] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Allow a repository with other files. Files of the same name are replaced."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Push a finished job's adapter to the Hugging Face hub, as one commit. The server does it with your hub token."""
    client = connect(context)
    job_id = find_job(client, job)["id"]
    started = client.post(f"/jobs/{job_id}/pushes", {"repo": to, "public": public, "replace": replace})
    ended = _followed(client, started)
    if as_json:
        put_json(ended)
    else:
        put(in_words(ended))
    if ended["state"] == "failed":
        raise CommandError(Exit.FAILED, clean(ended["reason"]))


def _followed(client: Client, push: Json) -> Json:
    """Wait for the end of a push, through restarts of the server. Says why it waits."""
    said, silent_since = "", None
    while push["state"] == "running":
        if push["reason"] and push["reason"] != said:
            said = push["reason"]
            say(clean(f"{said} Trying again."))
        time.sleep(PERIOD_S)
        try:
            push, silent_since = client.get(f"/pushes/{push['id']}"), None
        except Error as error:
            silent_since = silent_since or time.monotonic()
            if error.reason != "unreachable" or time.monotonic() - silent_since > PATIENCE_S:
                raise
    return push


def pushes_of(client: Client, job_id: str) -> list[Json]:
    """The pushes of a job, newest first. None at an older server, which has no such route."""
    try:
        return listed(client.get(f"/jobs/{job_id}/pushes"))
    except Error as error:
        if error.reason != "not_found":
            raise
        return []


def in_words(push: Json) -> str:
    """The state of a push in one line."""
    if push["state"] == "pushed":
        had = "" if push["made_commit"] else ", which had all files already"
        return f"pushed to https://huggingface.co/{push['repo']}, commit {push['commit']}{had}"
    reason = f": {push['reason']}" if push["reason"] else ""
    return f"{'pushing' if push['state'] == 'running' else 'not pushed'} to {push['repo']}{reason}"
