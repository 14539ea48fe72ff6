"""`trainhop join` and `trainhop leave`: for a person at a machine that works for a server elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import clean, say

app = typer.Typer()
FolderOption = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="Where the machine's place is kept (one server each).")
]


def _place(folder: Path | None) -> Path:
    from worker.joined.membership import default_folder

    return (folder or default_folder()).absolute()


@app.command(rich_help_panel="Server")
def join(
    url: Annotated[str | None, typer.Argument(metavar="[URL", help="The server's address.")] = None,
    code: Annotated[str | None, typer.Argument(metavar="CODE]", help="From `trainhop accounts code`.")] = None,
    name: Annotated[str, typer.Option(help="The machine's name on the server (default: its hostname).")] = "",
    shares: Annotated[int, typer.Option(help="How many sessions share each GPU, or the processor without one.")] = 1,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The Python with torch that runs the sessions, 3.11 or newer (default: this one)."
        ),
    ] = None,
    folder: FolderOption = None,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Start it with this machine, by your own systemd.")
    ] = False,
) -> None:
    """Make this machine work for a server: one session for each GPU, or one without a GPU. It needs no open port.

    Without URL and CODE, start a machine again that has joined before.
    """
    from worker.joined import __main__ as program
    from worker.joined import joining, unit
    from worker.joined.membership import LEAVING, MachineError

    place = _place(folder)
    if (url is None) != (code is None):
        raise CommandError(Exit.USAGE, "Give both the server's address and a code: trainhop join URL CODE.")
    checked = None
    try:
        if url is not None and code is not None:
            checked = joining.join(place, url, code, _show, name=name, shares=shares, python=python or sys.executable)
        else:
            (place / LEAVING).unlink(missing_ok=True)
        if systemd:
            _show(unit.enable(place))
            return
    except MachineError as error:
        raise CommandError(Exit.FAILED, str(error)) from None
    if result := program.main(place, checked):
        raise typer.Exit(result)


@app.command(rich_help_panel="Server")
def leave(
    drain: Annotated[
        bool, typer.Option("--drain", help="Keep the machine's place: it works again after a restart.")
    ] = False,
    folder: FolderOption = None,
) -> None:
    """Have the sessions on this machine save and end, then leave its server. Jobs continue on other machines."""
    from worker.joined import joining
    from worker.joined.membership import MachineError

    try:
        joining.leave(_place(folder), _show, drain=drain)
    except MachineError as error:
        raise CommandError(Exit.FAILED, str(error)) from None


def _show(text: str) -> None:
    say(clean(text))
