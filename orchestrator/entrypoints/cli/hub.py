"""Commands about your token for the Hugging Face hub."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.members import read_secret
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say

app = typer.Typer(no_args_is_help=True, help="Your token for gated and private models of the Hugging Face hub.")


@app.command("login")
def login(
    context: typer.Context,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file with the token, or - for stdin; you are asked, if left out."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Keep a token that may read (huggingface.co/settings/tokens); it is tried, sealed, and never leaves the server."""
    client = connect(context)
    if token_file is not None:
        token = read_secret(token_file)
    elif sys.stdin.isatty():
        token = typer.prompt("Token", hide_input=True, err=True)
    else:
        token = read_secret("-")
    kept = client.put("/hub-token", {"token": token.strip()})
    put_json(kept) if as_json else put(_words(kept))


@app.command("logout")
def logout(context: typer.Context) -> None:
    """Forget your token; sessions that have begun go on."""
    connect(context).delete("/hub-token")
    say("no token is kept any more")


@app.command("show")
def show(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Say whether your token is kept, and whose it is; the token itself is shown to nobody."""
    kept = connect(context).get("/hub-token")
    put_json(kept) if as_json else put(_words(kept))


def _words(kept: dict[str, Any]) -> str:
    if not kept["stored"]:
        return "no token is kept: gated and private models need one (trainhop hub login)"
    return f"the token of {clean(kept['account'])} is kept, encrypted"
