"""`trainhop up`: the server on this computer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.desktop import has_desktop, open_browser
from orchestrator.entrypoints.cli.output import in_hints, put, say
from trainhop.connection import data_folder
from worker.shared.files import expanded

if TYPE_CHECKING:
    from orchestrator.config import Settings
    from orchestrator.entrypoints.background.server import Ready

app = typer.Typer()


@app.command(rich_help_panel="Server")
def up(
    context: typer.Context,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to listen on (default: 8642). 0 selects a free port.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the database, checkpoints and tokens.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=0, help="Concurrent jobs on this computer (first start only).")
    ] = None,
    session: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Session limit on this computer (first start only).")
    ] = None,
    allow_folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder with models and data that jobs can use. Can be repeated."),
    ] = None,
    browser: Annotated[
        bool | None,
        typer.Option(
            "--browser/--no-browser", help="Open the dashboard in a browser (default: in a terminal on a desktop)."
        ),
    ] = None,
    moved: Annotated[
        bool, typer.Option("--moved", help="The data folder was copied, and the original is no longer used.")
    ] = False,
    as_copy: Annotated[
        bool,
        typer.Option(
            "--as-copy",
            help="The data folder was copied: make it a server of its own. It leaves the original's sessions alone "
            "and pauses its unfinished jobs.",
        ),
    ] = False,
) -> None:
    """Start the server and scheduler."""
    if moved and as_copy:
        raise CommandError(Exit.USAGE, "--moved and --as-copy exclude each other. Choose one.")
    given = {
        "port": port,
        "host": host,
        "data_dir": data_dir or context.find_root().params.get("data_dir"),
        "local_slots": slots,
        "local_session_s": session,
        "allowed_folders": tuple(expanded(f).resolve() for f in allow_folder) if allow_folder else None,
    }
    origin = "copy" if as_copy else "moved" if moved else None
    opens = browser if browser is not None else sys.stderr.isatty() and has_desktop(os.environ)
    serve(load_settings({k: v for k, v in given.items() if v is not None}), origin, browser=opens)


def needs(error: ImportError) -> CommandError:
    """The error of a command that needs the server's packages, with the line that installs them here."""
    from worker.shared.installation import SERVER, install_line

    line = install_line(*SERVER)
    return CommandError(Exit.USAGE, f"A server needs {error.name}, which is not installed. Install it with:", line)


def load_settings(given: dict[str, Any]) -> Settings:
    """Settings from options, then `TRAINHOP_*` variables. Raises `CommandError` with the invalid one."""
    try:
        from pydantic import ValidationError
        from pydantic_settings import SettingsError

        from orchestrator.config import Settings
        from worker.shared.plain_errors import in_words
    except ImportError as error:
        raise needs(error) from error
    try:
        return Settings(**given)
    except ValidationError as error:
        names = [f"{_variable(str(f['loc'][0]), given)}: {in_words(f)}" for f in error.errors() if f["loc"]]
        raise CommandError(Exit.USAGE, *(names or [str(error)])) from error
    except SettingsError as error:
        raise CommandError(Exit.USAGE, f"{error}. Write lists as JSON, for example '[\"/data\"]'.") from error


def _variable(field: str, given: dict[str, Any]) -> str:
    return f"--{field.replace('_', '-')}" if field in given else f"TRAINHOP_{field.upper()}"


def _say_what_training_needs() -> None:
    from worker.shared.installation import SERVER, install_line, missing_modules

    if missing := missing_modules():
        say(f"training on this computer needs {', '.join(missing)}; other machines need nothing. To install it:")
        say(install_line(*SERVER, "train", torch="torch" in missing))


def serve(settings: Settings, origin: str | None = None, *, browser: bool = False) -> None:
    """Run the server in this process until a signal stops it. `origin` is a value of `Origin`.

    `browser` opens the dashboard, which uses up the link that is printed.
    """
    from orchestrator.domain.errors import ConflictError
    from orchestrator.ports.system import VaultError
    from worker.shared.imports import quick_imports

    try:
        with quick_imports():
            from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

            from orchestrator.adapters.instance import Origin
            from orchestrator.entrypoints.background.server import run
    except ImportError as error:
        raise needs(error) from error

    is_terminal = sys.stderr.isatty()  # `run` puts a stream of its own there

    def announce(ready: Ready) -> None:
        _announce(ready, settings.folder, is_terminal=is_terminal, browser=browser)

    # uvicorn raises the signal that stopped it again. As an exception it lets everything close first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(settings, on_ready=announce, origin=Origin(origin) if origin else None)
    except KeyboardInterrupt:
        say("stopped")
    except (ConflictError, VaultError) as error:
        raise CommandError(Exit.FAILED, str(error)) from error
    except ArgumentError as error:
        raise CommandError(Exit.USAGE, f"TRAINHOP_DATABASE_URL: {error}") from error
    except DatabaseError as error:
        if type(error) not in (DatabaseError, OperationalError):  # the other kinds are bugs
            raise
        raise CommandError(
            Exit.FAILED, f"Could not use the database: {str(error.orig).strip()}. Check TRAINHOP_DATABASE_URL."
        ) from error
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{error.filename or settings.folder}: {error.strerror or error}") from error


def _announce(ready: Ready, folder: Path, *, is_terminal: bool, browser: bool) -> None:
    if folder != data_folder():
        in_hints(["--data-dir", str(folder)])
    put(f"trainhop is running at {ready.url}")
    if is_terminal:
        opened = ", in your browser now" if browser else ""
        say(f"open     {ready.link} (works once{opened}; `trainhop open` creates another)")
    else:  # a log, which others may read
        say("open     run `trainhop open` on this computer for a login link")
    say(f"data     {folder}")
    say(f"token    {ready.token_file} (commands on this computer use it automatically)")
    say(f"process  {os.getpid()}; Ctrl-C stops the server, running workers continue")
    _say_what_training_needs()
    if browser:
        open_browser(ready.link)
