"""Commands for stores, where checkpoints and adapters are stored."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.entrypoints.cli import schemas
from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.job_file import assignments
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, size, table
from orchestrator.entrypoints.cli.phrases import listed
from trainhop.connection import segment

if TYPE_CHECKING:
    from orchestrator.ports.stores import SignIn

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
        body["credentials"] = sign_in(store, _read(client_secrets), browser=browser)
    used = client.put(f"/stores/{segment(store)}", body)
    if as_json:
        put_json(used)
        return
    put(f"new files are stored in {clean(used['name'])}{_whose(used)}")
    if used["used"] is not None:
        put(f"{size(used['used'])} used, {'no limit' if used['free'] is None else size(used['free']) + ' free'}")
    _say_note(used)


def sign_in(store: str, client: str, *, browser: bool) -> str:
    """The credentials for a store, from a sign-in with an OAuth client. Its driver must be installed here."""
    from orchestrator.domain.errors import TrainhopError
    from orchestrator.ports.stores import NOWHERE, StoreError

    try:
        begun = _begun(store, client)
        if browser:
            with contextlib.redirect_stdout(sys.stderr):
                return begun.in_browser()
        address, _ = begun.begin(NOWHERE)
        say("Open this address in a browser on any computer and agree:")
        say(f"  {address}")
        say("The browser then fails to load a page at 127.0.0.1. Copy the full address of that page and paste it here:")
        return begun.finish(sys.stdin.readline())
    except StoreError as error:
        raise CommandError(Exit.UNREACHABLE, str(error)) from error
    except TrainhopError as error:
        raise CommandError(Exit.FAILED, str(error)) from error


def _begun(store: str, client: str) -> SignIn:
    from orchestrator.adapters.stores.registry import StoreRegistry
    from orchestrator.config import Settings
    from orchestrator.domain.errors import InvalidError

    kind = StoreRegistry().kind(store)
    if kind.sign_in is None:
        raise CommandError(Exit.USAGE, f"The store {clean(store)} has no sign-in. Use --credentials FILE.")
    try:
        endpoint = getattr(Settings().of_driver(store, kind.settings), "endpoint", None)
        return kind.sign_in(client, endpoint)
    except (InvalidError, ValueError) as error:
        raise CommandError(Exit.USAGE, str(error)) from error


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
