"""The command line. `trainhop --help` imports only typer. Each command imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli import (
    adapter_export,
    agents,
    artifacts,
    audits,
    backups,
    chat,
    compared_jobs,
    comparisons,
    datasets,
    doctor,
    download,
    evaluations,
    hub,
    imports,
    init,
    jobs,
    join,
    judges,
    link,
    members,
    models,
    notebook,
    notes,
    notifications,
    pushes,
    serve,
    shares,
    stores,
    sweeps,
    trackers,
    watch,
)
from orchestrator.entrypoints.cli.client import CommandError, Exit, exit_code
from orchestrator.entrypoints.cli.output import clean, in_hints, say
from trainhop.errors import Error

INTERRUPTED = 130

app = typer.Typer(
    name="trainhop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 the job failed or the server refused, 2 usage error, 3 not found, "
    "4 not allowed, 5 no connection to the server.",
)
for part in (
    serve.app,
    init.app,
    imports.app,
    link.app,
    jobs.app,
    evaluations.app,
    notebook.app,
    watch.app,
    artifacts.app,
    download.app,
    adapter_export.app,
    pushes.app,
    shares.app,
    sweeps.app,
    notes.app,
    compared_jobs.app,
    chat.app,
    doctor.app,
    backups.app,
    agents.app,
    join.app,
):
    app.add_typer(part)
app.add_typer(members.accounts, name="accounts", rich_help_panel="Server")
app.add_typer(comparisons.app, name="compare", rich_help_panel="Server")
datasets.app.add_typer(audits.app, name="audit")
app.add_typer(datasets.app, name="datasets", rich_help_panel="Server")
app.add_typer(hub.app, name="hub", rich_help_panel="Server")
app.add_typer(judges.app, name="judge", rich_help_panel="Server")
app.add_typer(members.members, name="members", rich_help_panel="Server")
app.add_typer(models.app, name="models", rich_help_panel="Server")
app.add_typer(notifications.app, name="notifications", rich_help_panel="Server")
app.add_typer(members.tokens, name="tokens", rich_help_panel="Server")
app.add_typer(stores.app, name="store", rich_help_panel="Server")
app.add_typer(trackers.app, name="trackers", rich_help_panel="Server")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"trainhop {version('trainhop')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    server: Annotated[
        str | None, typer.Option(metavar="URL", envvar="TRAINHOP_SERVER_URL", help="The server's address.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="TRAINHOP_DATA_DIR", help="The data folder of a local server.")
    ] = None,
    version: Annotated[  # noqa: ARG001  its callback reads it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models on free GPUs that time out. Jobs resume exactly where they stopped."""
    given = {"--server": ("server", server), "--data-dir": ("data_dir", data_dir)}
    in_hints(
        [
            word
            for option, (name, value) in given.items()
            if value is not None and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
            for word in (option, str(value))
        ]
    )


@app.command(rich_help_panel="Server")
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="A folder for the demo's files and results.")] = Path(
        "trainhop-demo"
    ),
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Use emulators of a provider and of Google Drive.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Check faulty data, evaluate an adapter, and simulate a blind comparison.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document at the end.")] = False,
) -> None:
    """Fine-tune a small model on this computer, with one killed worker and one hand-off."""
    if trust and sandbox:
        raise CommandError(Exit.USAGE, "--trust and --sandbox are two demos. Choose one of them.")
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, so that its server and workers end with it
        signal.signal(number, signal.default_int_handler)
    if trust:
        from orchestrator.entrypoints.demo.trust import run_trust_demo

        raise typer.Exit(run_trust_demo(folder, as_json=as_json))
    from orchestrator.entrypoints.demo.command import run_demo

    raise typer.Exit(run_demo(folder, as_json=as_json, sandbox=sandbox))


def main(command: Callable[[], object] = app) -> None:
    """Run one command and exit with its code."""
    try:
        command()
    except Error as error:
        for line in error.lines:
            say(clean(line))
        sys.exit(int(exit_code(error)))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Without this, Python reports it again when it flushes at exit.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        say(clean(f"{error.filename}: {error.strerror}" if error.filename else error))
        sys.exit(int(Exit.FAILED))


if __name__ == "__main__":
    main()
