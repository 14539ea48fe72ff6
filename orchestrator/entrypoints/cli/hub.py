"""Commands for your Hugging Face token."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.members import read_secret
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say

app = typer.Typer(no_args_is_help=True, help="Your Hugging Face token for gated and private models, and for pushes.")


@app.command("login")
def login(
    context: typer.Context,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file with the token, or - for stdin (default: prompt)."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Store a token (huggingface.co/settings/tokens). It is checked and encrypted, and machines never get it.

    For models it only has to read. A push needs one that can write.
    """
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
    """Remove your token. Running sessions continue."""
    connect(context).delete("/hub-token")
    say("removed your token")


@app.command("show")
def show(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show whether a token is stored, and for which Hugging Face account. The token is never shown."""
    kept = connect(context).get("/hub-token")
    put_json(kept) if as_json else put(_words(kept))


def _words(kept: dict[str, Any]) -> str:
    if not kept["stored"]:
        return "No token is stored. Gated and private models and pushes need one (trainhop hub login)."
    return f"A token of {clean(kept['account'])} is stored, encrypted."
