"""Commands about where checkpoints and adapters lie."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect, segment
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, size, table
from orchestrator.entrypoints.cli.phrases import listed

app = typer.Typer(no_args_is_help=True, help="Where checkpoints and adapters lie.")

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="local, or drive (Google Drive).")]


@app.command("ls")
def list_stores(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the stores, which of them is used, and the space in them."""
    found = listed(connect(context).get("/stores"))
    if as_json:
        put_json(found)
        return
    table(("NAME", "NEW FILES", "OWNER", "USED", "FREE", "NOTE"), [_row(store) for store in found])


def _row(store: dict[str, Any]) -> tuple[Any, ...]:
    known = store["used"] is not None
    free = ("no limit" if store["free"] is None else size(store["free"])) if known else None
    here = "here" if store["current"] else None
    return (store["name"], here, store["owner"], size(store["used"]) if known else None, free, store["problem"])


@app.command("use")
def use_store(
    context: typer.Context,
    store: StoreArgument,
    client_secrets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your OAuth client (type: Desktop app); you then sign in.")
    ] = None,
    authorized_user: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An authorized_user file, or - for stdin; nobody is asked.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Sign in with a browser on this computer, or on another.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Keep new files there; it is tried out first. What lies elsewhere stays and is still used."""
    if client_secrets is not None and authorized_user is not None:
        raise CommandError(Exit.USAGE, "give --client-secrets or --authorized-user, not both")
    client = connect(context)
    body: dict[str, str] = {}
    if authorized_user is not None:
        body["credentials"] = _read(authorized_user)
    elif client_secrets is not None:
        from orchestrator.entrypoints.cli.sign_in import read_client, sign_in

        body["credentials"] = sign_in(read_client(client_secrets), browser=browser)
    used = client.put(f"/stores/{segment(store)}", body)
    if as_json:
        put_json(used)
        return
    put(f"new files go to {clean(used['name'])}{_whose(used)}")
    if used["used"] is not None:
        put(f"{size(used['used'])} used, {'no limit' if used['free'] is None else size(used['free']) + ' free'}")


def _whose(store: dict[str, Any]) -> str:
    return f" ({clean(store['owner'])})" if store["owner"] else ""


def _read(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        raise CommandError(Exit.USAGE, f"{file}: {why}") from error


@app.command("check")
def check_store(
    context: typer.Context,
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help="The one in use, if left out.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write, read back and delete a small file."""
    client = connect(context)
    name = store or next(s["name"] for s in listed(client.get("/stores")) if s["current"])
    checked = client.post(f"/stores/{segment(name)}:check")
    if as_json:
        put_json(checked)
        return
    say(f"{clean(checked['name'])}{_whose(checked)} works: a file was written, read back and deleted")
