"""The command that shares a job's page: as a link without log-in, or as one HTML file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import JobArgument, listed
from trainhop.connection import find_job, segment
from worker.shared.files import expanded, write_atomically

app = typer.Typer()


@app.command(rich_help_panel="Jobs")
def share(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write the page as one HTML file instead.")] = None,
    samples: Annotated[bool, typer.Option("--samples", help="With the first and last answers to samples.")] = False,
    days: Annotated[float | None, typer.Option(min=1, max=3650, help="Days until the link ends.")] = None,
    show: Annotated[bool, typer.Option("--ls", help="List the links of the job.")] = False,
    revoke: Annotated[str | None, typer.Option(metavar="LINK", help="Revoke this link, by its id.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a link to a job's page that needs no log-in: curve, route over the machines, hours, hashes.

    The page has no names of people or accounts, no paths and no data. It has samples only with `--samples`.
    """
    if sum((out is not None, show, revoke is not None)) > 1:
        raise CommandError(Exit.USAGE, "Use one of --out, --ls and --revoke.")
    client = connect(context)
    path = f"/jobs/{find_job(client, job)['id']}"
    if out is not None:
        target = expanded(out)
        write_atomically(target, client.text(f"{path}/journey", samples=samples)[0])
        say(f"wrote {clean(target)}")
    elif show:
        _table(listed(client.get(f"{path}/shares")), as_json)
    elif revoke is not None:
        client.delete(f"{path}/shares/{segment(revoke)}")
        say(f"revoked {clean(revoke)}")
    else:
        made = client.post(f"{path}/shares", {"samples": samples, "days": days})
        put_json(made) if as_json else put(made["url"])
        say("Save it now. It is not shown again.")


def _table(links: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        put_json(links)
        return
    rows = [
        (s["id"], s["member"], moment(s["created_at"]), moment(s["expires_at"]), s["samples"], s["ended"] or "works")
        for s in links
    ]
    table(("LINK", "MADE BY", "CREATED", "EXPIRES", "SAMPLES", "STATE"), rows)
