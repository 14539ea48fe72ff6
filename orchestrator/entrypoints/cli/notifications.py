"""Commands about notifications: where you are told of what."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import connect, segment
from orchestrator.entrypoints.cli.output import JsonFlag, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import listed

app = typer.Typer(no_args_is_help=True, help="Where you are told of what.")
ChannelArgument = Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel's id.")]


@app.command("ls")
def list_channels(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List your channels."""
    found = listed(connect(context).get("/notifications"))
    if as_json:
        put_json(found)
        return
    rows = [
        (c["id"], c["label"], c["job"] or "all", ", ".join(c["topics"]), None if c["active"] else "given up")
        for c in found
    ]
    table(("ID", "WHERE", "JOBS", "TOPICS", "NOTE"), rows)


@app.command("add")
def add_channel(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="An Apprise address, or http(s) for signed webhooks.")],
    topic: Annotated[
        list[str] | None, typer.Option(help="started, handed_off, quota_low, stalled ...; all if left out.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="Only this job.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Be told of something from now on."""
    body = {"url": url, "job": job} | ({"topics": topic} if topic else {})
    made = connect(context).post("/notifications", body)
    if as_json:
        put_json(made)
        return
    put(made["channel"]["id"])
    if made["secret"]:
        say(f"secret  {made['secret']} (shown this once; receivers check signatures with it)")


@app.command("rm")
def remove_channel(context: typer.Context, channel: ChannelArgument) -> None:
    """Be told no more; the address and the log are forgotten."""
    connect(context).delete(f"/notifications/{segment(channel)}")


@app.command("test")
def send_test(context: typer.Context, channel: ChannelArgument, as_json: JsonFlag = False) -> None:
    """Send a message now and say how that went; exit code 1 if it did not arrive."""
    sent = connect(context).post(f"/notifications/{segment(channel)}:test")
    put_json(sent) if as_json else put(f"{sent['state']}{': ' if sent['detail'] else ''}{sent['detail']}")
    if sent["state"] != "sent":
        raise typer.Exit(1)


@app.command("log")
def log(context: typer.Context, channel: ChannelArgument, as_json: JsonFlag = False) -> None:
    """What a channel was told, newest first."""
    found = listed(connect(context).get(f"/notifications/{segment(channel)}/deliveries"))
    if as_json:
        put_json(found)
        return
    rows = [(moment(d["created_at"]), d["topic"], d["state"], d["attempts"], d["title"], d["detail"]) for d in found]
    table(("WHEN", "TOPIC", "STATE", "TRIES", "MESSAGE", "NOTE"), rows)
