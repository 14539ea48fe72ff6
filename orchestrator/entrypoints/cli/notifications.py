"""Commands for notification channels."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.output import JsonFlag, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import listed
from trainhop.connection import segment

app = typer.Typer(no_args_is_help=True, help="Notification channels.")
ChannelArgument = Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel's id.")]


@app.command("ls")
def list_channels(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List your channels."""
    items = listed(connect(context).get("/notifications"))
    if as_json:
        put_json(items)
        return
    rows = [
        (c["id"], c["label"], c["job"] or "all", ", ".join(c["topics"]), None if c["active"] else "disabled")
        for c in items
    ]
    table(("ID", "WHERE", "JOBS", "TOPICS", "NOTE"), rows)


@app.command("add")
def add_channel(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="An Apprise URL, or an http(s) URL for a signed webhook.")],
    topic: Annotated[
        list[str] | None, typer.Option(help="started, handed_off, quota_low, stalled ... (default: all).")
    ] = None,
    job: Annotated[str | None, typer.Option(help="Only for this job.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Add a channel."""
    body = {"url": url, "job": job} | ({"topics": topic} if topic else {})
    made = connect(context).post("/notifications", body)
    if as_json:
        put_json(made)
        return
    put(made["channel"]["id"])
    if made["secret"]:
        say(f"secret  {made['secret']} (shown once; receivers verify signatures with it)")


@app.command("rm")
def remove_channel(context: typer.Context, channel: ChannelArgument) -> None:
    """Remove a channel with its address and log."""
    connect(context).delete(f"/notifications/{segment(channel)}")


@app.command("test")
def send_test(context: typer.Context, channel: ChannelArgument, as_json: JsonFlag = False) -> None:
    """Send a test message. The exit code is 1 if the delivery fails."""
    sent = connect(context).post(f"/notifications/{segment(channel)}:test")
    put_json(sent) if as_json else put(f"{sent['state']}{': ' if sent['detail'] else ''}{sent['detail']}")
    if sent["state"] != "sent":
        raise typer.Exit(1)


@app.command("log")
def log(context: typer.Context, channel: ChannelArgument, as_json: JsonFlag = False) -> None:
    """List the messages of a channel, newest first."""
    items = listed(connect(context).get(f"/notifications/{segment(channel)}/deliveries"))
    if as_json:
        put_json(items)
        return
    rows = [(moment(d["created_at"]), d["topic"], d["state"], d["attempts"], d["title"], d["detail"]) for d in items]
    table(("WHEN", "TOPIC", "STATE", "TRIES", "MESSAGE", "NOTE"), rows)
