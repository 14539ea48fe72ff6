"""Commands about data files that were uploaded."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, moment, put_json, say, size, table

app = typer.Typer(no_args_is_help=True, help="Data files that were uploaded.")

MAX_LISTED = 10_000
MemberOption = Annotated[str | None, typer.Option(metavar="MEMBER", help="Of this member; for admins.")]


@app.command("ls")
def list_datasets(
    context: typer.Context,
    member: MemberOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List data files, newest first: those you have brought, for an admin everybody's."""
    found = connect(context).pages("/datasets", limit, member=member)
    if as_json:
        put_json(found)
        return
    rows = [
        (d["sha256"][:16], d["name"], d["member"], d["rows"], d["type"], size(d["size"]), moment(d["created_at"]))
        for d in found
    ]
    table(("SHA256", "NAME", "MEMBER", "ROWS", "TYPE", "SIZE", "BROUGHT"), rows)


@app.command("rm")
def remove_dataset(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="SHA256", help="Four characters or more of its beginning.")],
    member: MemberOption = None,
) -> None:
    """Delete a data file that no job of yours needs any more. Others who have brought the same bytes keep them."""
    client = connect(context)
    sha256 = _find(client, dataset.removeprefix("sha256:").lower(), member)
    client.delete(f"/datasets/{sha256}", member=member)
    say(f"{sha256[:16]} is removed")


def _find(client: Client, given: str, member: str | None) -> str:
    if not re.fullmatch(r"[0-9a-f]{4,64}", given):
        raise CommandError(Exit.USAGE, "a data file is named by four characters or more of its sha256's beginning")
    if len(given) == 64:
        return given
    whose = member or client.get("/me")["id"]
    listed: list[dict[str, Any]] = client.pages("/datasets", MAX_LISTED, member=whose)
    found = [d for d in listed if d["sha256"].startswith(given)]
    if not found:
        raise CommandError(Exit.NOT_FOUND, f"there is no data file {clean(given)}")
    if len(found) > 1:
        named = ", ".join(f"{d['sha256'][:16]} ({clean(d['name'])})" for d in found[:10])
        raise CommandError(Exit.USAGE, f"{given} may be any of {named}")
    return found[0]["sha256"]
