"""`trainhop mcp`: tools for agents. The server's code and its package are imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import say

if TYPE_CHECKING:
    from orchestrator.entrypoints.mcp.server import Agents

app = typer.Typer()

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")  # noqa: S104  nothing is bound here


@app.command("mcp", rich_help_panel="Server")
def mcp_(
    context: typer.Context,
    http: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve HTTP there instead of stdio. Every caller brings a token."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:PORT]", help="With --http: a further name of this server. Repeatable."),
    ] = None,
    allow_folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Data files of this folder may be uploaded. Repeatable. Default: none."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Leave out the tools that change something.")] = False,
) -> None:
    """Offer tools to an agent over the Model Context Protocol: plan, submit, list, show, logs and others."""
    host, port = _address(http) if http is not None else ("", 0)
    names = _names(host, port, allow_host or [])
    folders = [] if read_only else [folder.expanduser().resolve() for folder in allow_folder or ()]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise CommandError(Exit.USAGE, f"{missing[0]} is not a folder.")
    try:
        from orchestrator.entrypoints.mcp import server
    except ModuleNotFoundError as error:
        raise _not_installed() from error
    found = connect(context)  # names the server, and says where none is known
    if http is not None:
        made = server.make_server(server.as_caller(found.url, folders), read_only=read_only)
        _serve(made, host, port, names)
        return
    import trainhop

    with trainhop.Client(found.url, token=found.token, folders=folders) as client:
        server.make_server(server.as_one(client), read_only=read_only).run("stdio")


def _not_installed() -> CommandError:
    from worker.shared.installation import install_line

    return CommandError(Exit.USAGE, f"`trainhop mcp` needs the package mcp. Install it with: {install_line('mcp')}")


def _address(given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise CommandError(Exit.USAGE, f"--http {given}: expected HOST:PORT or PORT")
    return host.strip("[]") or LOOPBACK[0], int(port)


def _names(host: str, port: int, others: list[str]) -> list[str]:
    """What a request may name as its host. Any other name is a page's that wants to reach this computer."""
    if host in ANY and not others:
        raise CommandError(Exit.USAGE, f"With the address {host}, name this server with --allow-host.")
    own = LOOPBACK if host in LOOPBACK else () if host in ANY else (host,)
    shown = [f"[{name}]" if ":" in name else name for name in own]
    return [f"{name}:{port or '*'}" for name in shown] + others


def _serve(made: Agents, host: str, port: int, names: list[str]) -> None:
    import uvicorn

    from orchestrator.entrypoints.mcp.server import PATH, web_app

    if host not in LOOPBACK:
        say("note: tokens are sent unencrypted. Put a reverse proxy with TLS in front.")
    config = uvicorn.Config(web_app(made, names), host=host, port=port, log_level="warning", access_log=False)
    say(f"tools are at http://{f'[{host}]' if ':' in host else host}:{port}{PATH}")
    uvicorn.Server(config).run()
