"""`trainhop up`: the server on this computer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import put, say

if TYPE_CHECKING:
    from orchestrator.config import Settings

app = typer.Typer()


@app.command(rich_help_panel="Server")
def up(
    context: typer.Context,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="8642 unless given; 0 takes any free one.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless given.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Database, checkpoints and tokens.")] = None,
    slots: Annotated[int | None, typer.Option(min=0, help="Jobs at once on this computer (first start only).")] = None,
    session: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Longest session here (first start only).")
    ] = None,
    allow_folder: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Jobs may name models and data in it; repeat for more.")
    ] = None,
) -> None:
    """Serve until stopped: HTTP, and the clock that moves jobs on."""
    given = {
        "port": port,
        "host": host,
        "data_dir": data_dir or context.find_root().params.get("data_dir"),
        "local_slots": slots,
        "local_session_s": session,
        "allowed_folders": tuple(f.expanduser().resolve() for f in allow_folder) if allow_folder else None,
    }
    serve(load_settings({k: v for k, v in given.items() if v is not None}))


def load_settings(given: dict[str, Any]) -> Settings:
    """Options over `TRAINHOP_*` variables; raises `CommandError` naming the one that is wrong."""
    try:
        from pydantic import ValidationError
        from pydantic_settings import SettingsError

        from orchestrator.config import Settings
    except ImportError as error:
        raise CommandError(
            Exit.USAGE, f"the server needs {error.name}, which is not installed: pip install 'trainhop[server]'"
        ) from error
    try:
        return Settings(**given)
    except ValidationError as error:
        names = [
            f"{_variable(str(f['loc'][0]), given)}: {f['msg'].removeprefix('Value error, ')}"
            for f in error.errors()
            if f["loc"]
        ]
        raise CommandError(Exit.USAGE, *(names or [str(error)])) from error
    except SettingsError as error:
        raise CommandError(Exit.USAGE, f"{error}; lists are written as JSON, for example '[\"/data\"]'") from error


def _variable(field: str, given: dict[str, Any]) -> str:
    return f"--{field.replace('_', '-')}" if field in given else f"TRAINHOP_{field.upper()}"


def serve(settings: Settings) -> None:
    """Run the server in this process until a signal stops it."""
    from orchestrator.domain.errors import ConflictError
    from orchestrator.ports.providers import VaultError

    try:
        from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

        from orchestrator.entrypoints.background.server import Ready, run
    except ImportError as error:
        raise CommandError(
            Exit.USAGE, f"the server needs {error.name}, which is not installed: pip install 'trainhop[server]'"
        ) from error

    def announce(ready: Ready) -> None:
        put(f"trainhop serves at {ready.url}")
        say(f"open     {ready.link} (works once; `trainhop open` makes another)")
        say(f"data     {settings.folder}")
        say(f"token    {ready.token_file} (commands on this computer find it by themselves)")
        say(f"process  {os.getpid()}; Ctrl-C stops the server, running workers go on and are found again")

    # uvicorn ends by raising the signal that stopped it once more; as an exception it lets everything be closed first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(settings, on_ready=announce)
    except KeyboardInterrupt:
        say("stopped")
    except (ConflictError, VaultError) as error:
        raise CommandError(Exit.FAILED, str(error)) from error
    except ArgumentError as error:
        raise CommandError(Exit.USAGE, f"TRAINHOP_DATABASE_URL: {error}") from error
    except DatabaseError as error:
        if type(error) not in (DatabaseError, OperationalError):  # its other kinds are faults of ours
            raise
        raise CommandError(Exit.FAILED, f"the database cannot be used: {str(error.orig).strip()}") from error
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{error.filename or settings.folder}: {error.strerror or error}") from error
