"""`trainhop open`: a one-time link to the dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.output import JsonFlag, put, put_json, say

app = typer.Typer()


@app.command("open", rich_help_panel="Server")
def open_(
    context: typer.Context,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Also open the link in a browser.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print a link that logs you in to the dashboard. It works once, within an hour."""
    url = connect(context).post("/login-links")["url"]
    if as_json:
        put_json({"url": url})
    else:
        put(url)
    if browser:
        import webbrowser

        if not webbrowser.open(url):
            say("Could not open a browser. Open the link yourself.")
