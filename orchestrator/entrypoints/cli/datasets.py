"""Commands for uploaded data files."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.data_checks import check_dataset
from orchestrator.entrypoints.cli.output import JsonFlag, clean, moment, put_json, say, size, table

app = typer.Typer(no_args_is_help=True, help="Uploaded data files.")

app.command("check")(check_dataset)

MAX_LISTED = 10_000
MemberOption = Annotated[str | None, typer.Option(metavar="MEMBER", help="Another member's files (admins only).")]


@app.command("ls")
def list_datasets(
    context: typer.Context,
    member: MemberOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List your data files, newest first. Admins see all members' files."""
    items = connect(context).pages("/datasets", limit, member=member)
    if as_json:
        put_json(items)
        return
    rows = [
        (
            *(d["sha256"][:16], d["name"], d["member"], d["rows"], d["type"], size(d["size"])),
            # an older server neither copies nor audits
            *(moment(d["created_at"]), (d.get("parent") or "")[:16], d.get("audit")),
        )
        for d in items
    ]
    table(("SHA256", "NAME", "MEMBER", "ROWS", "TYPE", "SIZE", "UPLOADED", "CLEAN COPY OF", "NOTE"), rows)


@app.command("rm")
def remove_dataset(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="SHA256", help="The sha256, or its first four or more characters.")],
    member: MemberOption = None,
) -> None:
    """Delete a data file that none of your unfinished jobs needs. Other members' uploads of the same file stay."""
    client = connect(context)
    sha256 = find(client, dataset, member)
    client.delete(f"/datasets/{sha256}", member=member)
    say(f"removed {sha256[:16]}")


def find(client: Client, dataset: str, member: str | None) -> str:
    """The sha256 of a data file by its first characters. Raises `CommandError` if it names none, or several."""
    given = dataset.removeprefix("sha256:").lower()
    if not re.fullmatch(r"[0-9a-f]{4,64}", given):
        raise CommandError(
            Exit.USAGE, "This is not a sha256 prefix. Give at least the first four characters of a data file's sha256."
        )
    if len(given) == 64:
        return given
    whose = member or client.get("/me")["id"]
    listed: list[dict[str, Any]] = client.pages("/datasets", MAX_LISTED, member=whose)
    matches = [d for d in listed if d["sha256"].startswith(given)]
    if not matches:
        raise CommandError(
            Exit.NOT_FOUND, f"There is no data file {clean(given)}. List them with `trainhop datasets ls`."
        )
    if len(matches) > 1:
        named = ", ".join(f"{d['sha256'][:16]} ({clean(d['name'])})" for d in matches[:10])
        raise CommandError(Exit.USAGE, f"{given} matches several data files: {named}")
    return matches[0]["sha256"]
