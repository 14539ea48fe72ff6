"""The command line. `trainhop --help` imports typer alone; each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli import (
    artifacts,
    datasets,
    doctor,
    download,
    hub,
    jobs,
    link,
    members,
    notebook,
    notifications,
    serve,
    stores,
    watch,
)
from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import clean, say

INTERRUPTED = 130

app = typer.Typer(
    name="trainhop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 the job failed or the server refused, 2 wrong use, 3 not found, 4 not allowed, "
    "5 no server.",
)
for part in (serve.app, link.app, jobs.app, notebook.app, watch.app, artifacts.app, download.app, doctor.app):
    app.add_typer(part)
app.add_typer(members.accounts, name="accounts", rich_help_panel="Server")
app.add_typer(datasets.app, name="datasets", rich_help_panel="Server")
app.add_typer(hub.app, name="hub", rich_help_panel="Server")
app.add_typer(members.members, name="members", rich_help_panel="Server")
app.add_typer(notifications.app, name="notifications", rich_help_panel="Server")
app.add_typer(members.tokens, name="tokens", rich_help_panel="Server")
app.add_typer(stores.app, name="store", rich_help_panel="Server")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"trainhop {version('trainhop')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def root(
    server: Annotated[
        str | None, typer.Option(metavar="URL", envvar="TRAINHOP_SERVER_URL", help="The server to talk to.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="TRAINHOP_DATA_DIR", help="The data folder of a server on this computer."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models on machines that vanish; the run goes on exactly where it was."""


@app.command(rich_help_panel="Server")
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo works and leaves its results.")] = Path(
        "trainhop-demo"
    ),
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Over Kaggle and Google Drive, emulated on this computer.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON document on stdout.")] = False,
) -> None:
    """Fine-tune a small model here, with one worker killed and one handed over on the way."""
    from orchestrator.entrypoints.demo.command import run_demo

    raise typer.Exit(run_demo(folder, as_json=as_json, sandbox=sandbox))


def main() -> None:
    """Run one command and exit with its code."""
    try:
        app()
    except CommandError as error:
        for line in error.lines:
            say(clean(line))
        sys.exit(int(error.code))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has left; Python would complain once more while it flushes at exit.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        say(clean(f"{error.filename}: {error.strerror}" if error.filename else error))
        sys.exit(int(Exit.FAILED))


if __name__ == "__main__":
    main()
