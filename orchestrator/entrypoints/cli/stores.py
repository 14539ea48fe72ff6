"""Commands for stores, where checkpoints and adapters are stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli import schemas
from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.job_file import assignments
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, size, table
from orchestrator.entrypoints.cli.phrases import listed
from trainhop.connection import segment

app = typer.Typer(no_args_is_help=True, help="Where checkpoints and adapters are stored.")

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="local, drive (Google Drive), or another installed store.")
]


@app.command("ls")
def list_stores(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List stores with their used and free space."""
    items = listed(connect(context).get("/stores"))
    if as_json:
        put_json(items)
        return
    table(("NAME", "NEW FILES", "OWNER", "USED", "FREE", "NOTE"), [_row(store) for store in items])


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
        Path | None,
        typer.Option(metavar="FILE", help="Your OAuth client (type: Desktop app), for an interactive sign-in."),
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials", "--authorized-user", metavar="FILE", help="A file with the credentials, or - for stdin."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the store.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Sign in with a browser on this computer, or on another one.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Store new files there. The store is checked first. Files in other stores stay and remain in use."""
    if client_secrets is not None and credentials is not None:
        raise CommandError(Exit.USAGE, "--client-secrets and --credentials exclude each other. Use only one of them.")
    client = connect(context)
    needs = client.get(f"/stores/{segment(store)}/kind")
    chosen = assignments(changes or [])
    body: dict[str, Any] = {"config": chosen if needs["set_up"] else schemas.ask_missing(needs["settings"], chosen)}
    if credentials is not None:
        body["credentials"] = _read(credentials)
    elif client_secrets is not None:
        from orchestrator.entrypoints.cli.sign_in import read_client, sign_in

        body["credentials"] = sign_in(read_client(client_secrets), browser=browser)
    used = client.put(f"/stores/{segment(store)}", body)
    if as_json:
        put_json(used)
        return
    put(f"new files are stored in {clean(used['name'])}{_whose(used)}")
    if used["used"] is not None:
        put(f"{size(used['used'])} used, {'no limit' if used['free'] is None else size(used['free']) + ' free'}")
    _say_note(used)


def _say_note(store: dict[str, Any]) -> None:
    if note := store.get("note"):  # an older server has none
        say(f"warning: {clean(note)}")


def _whose(store: dict[str, Any]) -> str:
    return f" ({clean(store['owner'])})" if store["owner"] else ""


def _read(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise CommandError(Exit.USAGE, f"{file}: {why}") from error


@app.command("check")
def check_store(
    context: typer.Context,
    store: Annotated[
        str | None, typer.Argument(metavar="[STORE]", help="The store to check (default: the one in use).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a store: write, read and delete a small file."""
    client = connect(context)
    name = store or next(s["name"] for s in listed(client.get("/stores")) if s["current"])
    checked = client.post(f"/stores/{segment(name)}:check")
    if as_json:
        put_json(checked)
        return
    say(f"{clean(checked['name'])}{_whose(checked)} works: wrote, read and deleted a file")
    _say_note(checked)
