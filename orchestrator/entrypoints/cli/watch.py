"""`trainhop watch`: follow a job until it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import Client, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, say
from orchestrator.entrypoints.cli.phrases import JobArgument
from orchestrator.entrypoints.cli.views import View, make_view
from trainhop import polling
from trainhop.connection import find_job
from trainhop.polling import FINAL

app = typer.Typer()


class Losses:
    """The reported training loss by session. A step repeated after a lost session has one value per session."""

    def __init__(self) -> None:
        self.by_session: dict[str, dict[int, float]] = {}
        self._session = ""
        self._seen = 0

    def update(self, client: Client, job: dict[str, Any]) -> None:
        """Fetch the new values of the current session."""
        session = job["session"]
        step = session["step"] if session else job["step"]
        if session and session["id"] != self._session:
            # A session begins at the head. The first call also needs the steps before it.
            known = self._session and job["head"]
            self._session, self._seen = session["id"], min(step, job["head"]["step"]) if known else 0
        if step <= self._seen:
            return
        rows = client.get(f"/jobs/{job['id']}/metrics", name="loss", from_step=self._seen + 1)["items"]
        # Values beyond the session's own step belong to an earlier session.
        fresh = {row["step"]: row["value"] for row in rows if row["step"] <= step and row["value"] is not None}
        self.by_session.setdefault(self._session, {}).update(fresh)
        self._seen = max([self._seen, *fresh])

    def complete(self, rows: Iterable[dict[str, Any]], sessions: Sequence[dict[str, Any]]) -> None:
        """Add new values. The value of a step is that of the last session that trained it."""
        for row in rows:
            trained = [s["id"] for s in sessions if s["first_step"] < row["step"] <= s["last_step"]]
            if trained and row["value"] is not None:
                self.by_session.setdefault(trained[-1], {}).setdefault(row["step"], row["value"])

    def curve(self) -> dict[int, float]:
        """Loss by step. For repeated steps, the value of the later session."""
        merged: dict[int, float] = {}
        for values in self.by_session.values():
            merged |= values
        return dict(sorted(merged.items()))


@app.command(rich_help_panel="Jobs")
def watch(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Follow a job until it ends. The exit code is 0 if it succeeded, else 1."""
    client = connect(context)
    raise typer.Exit(follow(client, find_job(client, job)["id"], as_json=as_json))


def follow(client: Client, job_id: str, *, as_json: bool = False) -> int:
    """Show a job until it ends. Returns the exit code."""
    with make_view(as_json=as_json) as view:
        job = until_final(client, job_id, view)
    if job["state"] != "succeeded":
        say(f"{job_id} {job['state']}: {clean(job['message'])}")
    return Exit.OK if job["state"] == "succeeded" else Exit.FAILED


def until_final(
    client: Client,
    job_id: str,
    view: View,
    losses: Losses | None = None,
    on_poll: Callable[[dict[str, Any]], None] = lambda _job: None,
) -> dict[str, Any]:
    """Poll the job every second and show it. Tolerates restarts of the server. Returns the ended job."""
    losses = losses or Losses()

    def look() -> dict[str, Any]:
        job = client.get(f"/jobs/{job_id}")
        losses.update(client, job)
        return job

    def show(job: dict[str, Any]) -> None:
        view.show(job, losses.curve())
        if job["state"] not in FINAL:
            on_poll(job)

    return polling.until_final(look, show, view.note)
