"""The command that shows jobs side by side. Blind comparisons of their answers are in `comparisons`."""

from __future__ import annotations

import json
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.output import JsonFlag, put, put_json, table
from orchestrator.entrypoints.cli.phrases import JobsArgument
from trainhop.connection import find_job
from trainhop.polling import state_word

app = typer.Typer()


@app.command("diff", rich_help_panel="Jobs")
def diff(context: typer.Context, jobs: JobsArgument, as_json: JsonFlag = False) -> None:
    """Show 2 to 8 jobs side by side: their results, and the keys in which their job files differ."""
    client = connect(context)
    found = client.get("/jobs:compare", job=[find_job(client, job)["id"] for job in jobs])
    if as_json:
        put_json(found)
        return
    columns = ("#", "NAME", "STATE", "STEP", "LOSS", "LOWEST", "EVAL LOSS", "LOWEST", "GPU H", "COST", "MACHINES")
    table(columns, [(number, *_results(job)) for number, job in enumerate(found["jobs"], 1)])
    put()
    if not found["differences"]:
        put("The job files are equal, except for their names.")
        return
    numbers = [f"#{number}" for number in range(1, len(found["jobs"]) + 1)]
    table(("KEY", *numbers), [(each["key"], *map(_in_words, each["values"])) for each in found["differences"]])


def _results(job: dict[str, Any]) -> tuple[Any, ...]:
    losses = [_number(job[name][which]) for name in ("loss", "eval_loss") for which in ("last", "lowest")]
    step = f"{job['step']}/{job['total_steps']}"
    machines = ", ".join(job["machines"])
    return (job["name"], state_word(job["state"]), step, *losses, f"{job['gpu_hours']:.1f}", job["cost"], machines)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _in_words(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
