"""`trainhop import`: a job file from another trainer's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import clean, put, say

app = typer.Typer()


@app.command("import", rich_help_panel="Jobs")
def import_(
    config: Annotated[Path, typer.Argument(metavar="AXOLOTL_FILE", help="A configuration file of axolotl.")],
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The job file to write.")] = Path("job.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Translate a configuration of axolotl into a job file. Keys without a counterpart are named, there as well."""
    import shlex

    import yaml

    from orchestrator.entrypoints.cli.axolotl import NotTranslatableError, translate
    from trainhop import job_file

    if file.exists() and not force:
        raise CommandError(Exit.USAGE, f"{file} exists. Choose another name, or replace it with --force.")
    try:
        found = translate(job_file.read(config))
    except NotTranslatableError as error:
        raise CommandError(Exit.USAGE, f"{config}: {error}") from error
    job_file.check(str(config), found.spec)
    lines = [f"{key}: {words}" for key, words in found.different.items()]
    needless = [f"{key}: {words}" for key, words in found.needless.items()]
    head = [f"Translated from {config.name} by trainhop import."]
    head += ["", "Different from the original:", *lines] if lines else []
    head += ["", "Not needed:", *needless] if needless else []
    text = "".join(f"# {clean(line)}".rstrip() + "\n" for line in head)
    file.write_text(text + "\n" + yaml.safe_dump(found.spec, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for line in lines:
        say(clean(line))
    put(str(file))
    say(f"Next: trainhop plan {shlex.quote(str(file))}")
