"""`trainhop watch`: a job as it goes from machine to machine, until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect, find_job
from orchestrator.entrypoints.cli.output import JsonFlag, clean, say
from orchestrator.entrypoints.cli.phrases import JobArgument
from orchestrator.entrypoints.cli.views import View, make_view

app = typer.Typer()

PERIOD_S = 1.0
PATIENCE_S = 600.0
"""A server that is away for longer than this is taken to be gone."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})


class Losses:
    """The training loss as reported, by session: a step repeated after a lost machine has one value for each of the two."""

    def __init__(self) -> None:
        self.by_session: dict[str, dict[int, float]] = {}
        self._session = ""
        self._seen = 0

    def update(self, client: Client, job: dict[str, Any]) -> None:
        """Fetch what the current session has added."""
        session = job["session"]
        step = session["step"] if session else job["step"]
        if session and session["id"] != self._session:
            # A session begins at the head; who has just begun to watch wants everything before it too.
            known = self._session and job["head"]
            self._session, self._seen = session["id"], min(step, job["head"]["step"]) if known else 0
        if step <= self._seen:
            return
        rows = client.get(f"/jobs/{job['id']}/metrics", name="loss", from_step=self._seen + 1)["items"]
        # Beyond the session's own step lie what is left of an earlier one's.
        fresh = {row["step"]: row["value"] for row in rows if row["step"] <= step and row["value"] is not None}
        self.by_session.setdefault(self._session, {}).update(fresh)
        self._seen = max([self._seen, *fresh])

    def complete(self, rows: Iterable[dict[str, Any]], sessions: Sequence[dict[str, Any]]) -> None:
        """Add what came between two looks; a value that counts is that of the last session to train its step."""
        for row in rows:
            trained = [s["id"] for s in sessions if s["first_step"] < row["step"] <= s["last_step"]]
            if trained and row["value"] is not None:
                self.by_session.setdefault(trained[-1], {}).setdefault(row["step"], row["value"])

    def curve(self) -> dict[int, float]:
        """Loss by step, the later session's where two have trained a step."""
        merged: dict[int, float] = {}
        for values in self.by_session.values():
            merged |= values
        return dict(sorted(merged.items()))


@app.command(rich_help_panel="Jobs")
def watch(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Follow a job until it ends; exits with 0 if it succeeded and 1 if not."""
    client = connect(context)
    raise typer.Exit(follow(client, find_job(client, job)["id"], as_json=as_json))


def follow(client: Client, job_id: str, *, as_json: bool = False) -> int:
    """Show a job until it ends; returns the exit code."""
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
    """Poll the job every second and show it; outlasts restarts of the server. Returns the job as it ended."""
    losses = losses or Losses()
    silent_since: float | None = None
    while True:
        try:
            job = client.get(f"/jobs/{job_id}")
            losses.update(client, job)
        except CommandError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            silent_since = _wait_for_server(error, silent_since, view)
            continue
        if silent_since is not None:
            view.note("the server is back")
            silent_since = None
        view.show(job, losses.curve())
        if job["state"] in FINAL:
            return job
        on_poll(job)
        time.sleep(PERIOD_S)


def _wait_for_server(error: CommandError, silent_since: float | None, view: View) -> float:
    now = time.monotonic()
    if silent_since is None:
        view.note("the server does not answer; the job's worker goes on, trying again")
        silent_since = now
    if now - silent_since > PATIENCE_S:
        raise error
    time.sleep(PERIOD_S)
    return silent_since
