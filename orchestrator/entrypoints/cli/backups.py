"""`trainhop backup` and `trainhop restore`: the data of a server on this computer, as one file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, size
from orchestrator.entrypoints.cli.serve import load_settings, needs
from worker.shared.counted_words import many
from worker.shared.files import expanded

if TYPE_CHECKING:
    from orchestrator.config import Settings

app = typer.Typer()
File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the backup.", show_default=False)]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="The data folder of the server.")]
SHOWN = 10


@app.command(rich_help_panel="Server")
def backup(context: typer.Context, file: File, data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """Write the database, keys and local store to one file. The server may be running."""
    with _in_words():
        from orchestrator.adapters.backups import back_up

        settings = _settings(context, data_dir)
        written = back_up(settings.folder, settings.url, expanded(file))
    if as_json:
        put_json({"file": str(file), **asdict(written)})
    else:
        put(f"wrote {file}: {many(written.files, 'file')}, {size(written.size)}")
    for names, what in ((written.missing, "are not in the store"), (written.changed, "have other bytes than stated")):
        if names:
            shown = ", ".join(names[:SHOWN])
            say(clean(f"warning: {many(len(names), 'file')} that the database names {what}: {shown}"))
    kept = "" if settings.vault_key is None else " It does not contain TRAINHOP_VAULT_KEY, so keep that too."
    say(f"The file has the keys of this server. Keep it private.{kept}")


@app.command(rich_help_panel="Server")
def restore(context: typer.Context, file: File, data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """Put a backup into an empty data folder, here or on another computer."""
    with _in_words():
        from orchestrator.adapters.backups import restore as put_back

        settings = _settings(context, data_dir)
        about = put_back(expanded(file), settings.folder, settings.url)
    if as_json:
        put_json({"folder": str(settings.folder), "about": asdict(about)})
    else:
        put(f"restored {settings.folder}, a copy of {clean(about.folder)} on {clean(about.host)}")
    up = f"trainhop up --data-dir {shlex.quote(str(settings.folder))}"
    say(f"original no longer used:  {up} --moved")
    say(f"original still used:      {up} --as-copy")


def _settings(context: typer.Context, data_dir: Path | None) -> Settings:
    folder = data_dir or context.find_root().params.get("data_dir")
    return load_settings({} if folder is None else {"data_dir": folder})


@contextmanager
def _in_words() -> Iterator[None]:
    """Make a refusal the error of the command."""
    from orchestrator.domain.errors import TrainhopError

    try:
        yield
    except ImportError as error:
        raise needs(error) from error
    except TrainhopError as error:
        raise CommandError(Exit.FAILED, str(error)) from error
