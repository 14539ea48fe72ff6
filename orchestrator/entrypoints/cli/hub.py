"""Commands for the Hugging Face hub: your token, and a search for base models."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.members import read_secret
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, size, table
from orchestrator.entrypoints.cli.phrases import listed

app = typer.Typer(no_args_is_help=True, help="Base models on Hugging Face, and your token for it.")


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


@app.command("search")
def search(
    context: typer.Context,
    words: Annotated[str, typer.Argument(help="A part of the model's name, for example qwen2.5-7b.")],
    as_json: JsonFlag = False,
) -> None:
    """Search base models with their size and licence, and where they fit."""
    items = listed(connect(context).get("/base-models", search=words))
    if as_json:
        put_json(items)
        return
    rows = [
        (m["id"], parameters(m), m["licence"], "gated" if m["gated"] else None, m["adapter"], fits(m)) for m in items
    ]
    table(("MODEL", "PARAMETERS", "LICENCE", "ACCESS", "ADAPTER", "FITS"), rows)


def parameters(model: dict[str, Any]) -> str | None:
    """The number of parameters in billions."""
    return f"{model['parameters'] / 1e9:.2g} B" if model["parameters"] else None


def fits(model: dict[str, Any]) -> str:
    """Where the model fits, in words."""
    if model["fits"]:
        return ", ".join(model["fits"])
    if not model["gpu_bytes"]:
        return "not known"
    needed = f"needs about {size(model['gpu_bytes'])} on a GPU"
    return f"nowhere: {needed}" if model["largest_bytes"] and not model["unknown_memory"] else needed


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
