"""Commands that read a job's records: logs, metrics, events, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import (
    JsonFlag,
    clean,
    moment,
    put,
    put_json,
    put_json_line,
    say,
    size,
    table,
)
from orchestrator.entrypoints.cli.phrases import JobArgument, chosen_checkpoint, listed
from trainhop.connection import find_job, segment
from trainhop.download import fetch
from trainhop.polling import FINAL, PERIOD_S

app = typer.Typer()

CHUNK_BYTES = 1 << 18
FollowFlag = Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")]


@app.command(rich_help_panel="Records")
def logs(
    context: typer.Context,
    of: Annotated[str, typer.Argument(metavar="JOB|SESSION", help="A job (all its sessions) or one session.")],
    follow: FollowFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the output of a job's sessions."""
    client = connect(context)
    for session, text in _log_texts(client, of, follow):
        if as_json:
            put_json_line({"session": session, "text": text})
        else:
            put(clean(text.rstrip("\n"), one_line=False))


def _log_texts(client: Client, of: str, follow: bool) -> Iterator[tuple[str, str]]:
    """Whole lines with the id of their session. With `follow`, until the job ends and all output is read."""
    if of.startswith("lease-"):
        yield from ((of, text) for text in _Log(client, of).lines(end=True))
        return
    job_id = find_job(client, of)["id"]
    open_logs: dict[str, _Log] = {}
    while True:
        final = client.get(f"/jobs/{job_id}")["state"] in FINAL
        for session in listed(client.get(f"/jobs/{job_id}/sessions")):
            if session["id"] not in open_logs:
                say(f"--- {session['id']} on {clean(session['provider'])}/{clean(session['account'])}")
                open_logs[session["id"]] = _Log(client, session["id"])
            ended = not follow or session.get("ended_at") is not None
            yield from ((session["id"], text) for text in open_logs[session["id"]].lines(end=ended))
        if final or not follow:
            return
        time.sleep(PERIOD_S)


class _Log:
    """The log of one session. Each call reads up to its current end and returns whole lines only."""

    def __init__(self, client: Client, session: str) -> None:
        self._client, self._path = client, f"/sessions/{segment(session)}/log"
        self._offset, self._rest = 0, b""

    def lines(self, *, end: bool) -> Iterator[str]:
        """New lines. With `end`, also a last line without a line break."""
        while True:
            data, headers = self._client.text(self._path, offset=self._offset, limit=CHUNK_BYTES)
            self._offset = int(headers.get("x-next-offset", self._offset + len(data)))
            whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
            if newline:
                yield whole.decode(errors="replace") + "\n"
            if not data:
                break
        if end and self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""


@app.command(rich_help_panel="Records")
def metrics(
    context: typer.Context,
    job: JobArgument,
    name: Annotated[str | None, typer.Option(help="Only this metric, for example loss.")] = None,
    from_step: Annotated[int, typer.Option(min=0, help="First step to print.")] = 0,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print a job's metrics."""
    client = connect(context)
    path = f"/jobs/{find_job(client, job)['id']}/metrics"
    if as_csv:
        data, _ = client.text(path, name=name, from_step=from_step, format="csv")
        put(clean(data.decode().rstrip("\n"), one_line=False))
        return
    items = listed(client.get(path, name=name, from_step=from_step, format="json"))
    if as_json:
        put_json(items)
    else:
        table(("STEP", "NAME", "VALUE"), [(i["step"], i["name"], _number(i["value"])) for i in items])


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


@app.command(rich_help_panel="Records")
def events(context: typer.Context, job: JobArgument, follow: FollowFlag = False, as_json: JsonFlag = False) -> None:
    """Print a job's events, oldest first."""
    client = connect(context)
    job_id = find_job(client, job)["id"]
    after = 0
    while True:
        final = client.get(f"/jobs/{job_id}")["state"] in FINAL
        while new := listed(client.get(f"/jobs/{job_id}/events", after=after)):
            for event in new:
                _put_event(event, as_json)
            after = new[-1]["id"]
        if final or not follow:
            return
        time.sleep(PERIOD_S)


def _put_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        put_json_line(event)
        return
    data = "  ".join(f"{k}={v}" for k, v in (event.get("data") or {}).items() if k not in {"old", "new"})
    parts = (moment(event["at"]), f"{event['kind']:<22}", event["actor"], event.get("reason"), data)
    put("  ".join(clean(part) if i != 1 else str(part) for i, part in enumerate(parts) if part))


@app.command(rich_help_panel="Records")
def checkpoints(
    context: typer.Context,
    job: JobArgument,
    download: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Download this one, by step or sha256 prefix.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to save it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List a job's checkpoints, or download one."""
    client = connect(context)
    job_id = find_job(client, job)["id"]
    checkpoints = listed(client.get(f"/jobs/{job_id}/checkpoints"))
    if download is not None:
        chosen = chosen_checkpoint(checkpoints, download, "--download")
        target = out or Path(f"{job_id}-step-{chosen['step']}.safetensors")
        if target.exists():
            raise CommandError(Exit.USAGE, f"{target} already exists. Choose another file with --out.")
        fetch(client, f"/jobs/{job_id}/checkpoints/{chosen['sha256']}/file", target, chosen["sha256"])
        if as_json:
            put_json({"file": str(target), **chosen})
        else:
            put(str(target))
    elif as_json:
        put_json(checkpoints)
    else:
        rows = [
            (c["step"], c["sha256"][:16], size(c["size"]), c["state"], c["session"], moment(c["created_at"]))
            for c in checkpoints
        ]
        table(("STEP", "SHA256", "SIZE", "STATE", "SESSION", "CREATED"), rows)
