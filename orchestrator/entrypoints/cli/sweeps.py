"""Commands for tags of jobs, and for sweeps: sets of jobs with one tag that differ in some keys of their file."""

from __future__ import annotations

import secrets
import uuid
from copy import deepcopy
from itertools import product
from math import prod
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.findings import show_finding
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, say, seconds, size, table
from orchestrator.entrypoints.cli.phrases import FileArgument, JobArgument, obstacle
from trainhop.connection import find_job
from trainhop.errors import Error
from trainhop.job_file import check
from worker.shared.counted_words import many

app = typer.Typer()
MAX_JOBS = 500
ASK_FROM = 51
"""From this many jobs on, the command asks before it queues them."""
MAX_NAME = 200

Setting = tuple[str, str]
"""A key of the job file and one of its values, as typed."""


def combinations(changes: list[str]) -> list[tuple[Setting, ...]]:
    """All combinations of the values in `KEY=VALUE,VALUE` arguments, the last key changing fastest.

    Commas in brackets, braces and quotation marks do not part values. Raises `CommandError` for an argument without
    values, a repeated key, and more than `MAX_JOBS` combinations.
    """
    keys: list[list[Setting]] = []
    for change in changes:
        key, equals, text = change.partition("=")
        values = _parted(text)
        if not equals or not key or not all(value.strip() for value in values):
            raise CommandError(Exit.USAGE, f"--set {change}: expected key=value,value")
        if key in {known[0][0] for known in keys}:
            raise CommandError(Exit.USAGE, f"--set {change}: {key} is set twice. Write its values after one =.")
        keys.append([(key, value.strip()) for value in values])
    jobs = prod(map(len, keys))
    if jobs > MAX_JOBS:
        words = f"This sweep has {jobs:,} jobs, and the maximum is {MAX_JOBS}. Leave out some values."
        raise CommandError(Exit.USAGE, words)
    return list(product(*keys))


def _parted(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _entries(spec: dict[str, Any]) -> list[dict[str, Any]]:
    asked: dict[str, Any] = spec.get("evaluate") or {}
    return [*spec["datasets"], *(asked[key] for key in ("prompts", "tasks") if asked.get(key))]


class _Files:
    """Sends the data files of all jobs of a sweep, each once."""

    def __init__(self, client: Client, file: str, *, yes: bool) -> None:
        self._client, self._file, self._yes = client, file, yes
        self._sent: dict[tuple[str, str], str] = {}

    def send(self, spec: dict[str, Any], changes: list[str]) -> dict[str, Any]:
        """The job with its files named by their hashes."""
        keys = [(entry["path"], str(entry.get("type"))) for entry in _entries(spec)]
        for key, entry in zip(keys, _entries(spec), strict=True):
            entry["path"] = self._sent.get(key, entry["path"])
        body = job_file.send_data(self._client, self._file, spec, changes, yes=self._yes)
        self._sent |= {key: entry["path"] for key, entry in zip(keys, _entries(body), strict=True)}
        return body


def _with_settings(file: str, data: dict[str, Any], settings: tuple[Setting, ...]) -> dict[str, Any]:
    """The job file of one combination, checked, with a name that tells its settings."""
    job = deepcopy(data)
    job_file.changed(job, _as_changes(settings))
    if "name" not in dict(settings):
        job["name"] = f"{data.get('name') or 'sweep'} {_in_words(settings)}"[:MAX_NAME]
    return check(file, job)


def _as_changes(settings: tuple[Setting, ...]) -> list[str]:
    return [f"{key}={value}" for key, value in settings]


def _in_words(settings: tuple[Setting, ...]) -> str:
    return " ".join(_as_changes(settings))


@app.command(rich_help_panel="Jobs")
def sweep(
    context: typer.Context,
    file: FileArgument,
    changes: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE,VALUE", help="A key with its values. Repeat it.")
    ],
    tag: Annotated[str | None, typer.Option(help="The tag of the jobs (default: sweep- and six letters).")] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show the plan and queue nothing.")] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Ask nothing, for more than 50 jobs and for data files outside the folder."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit one job for each combination of values, all with one tag. Their plan is shown first.

    Example: `--set learning_rate=1e-4,2e-4 --set lora_r=8,16` makes four jobs. They are jobs like any others.
    """
    settings = combinations(changes)
    data = job_file.read(file)
    specs = [_with_settings(file, data, each) for each in settings]
    if len(specs) >= ASK_FROM and not yes:
        wish = "Plan them?" if plan_only else "Plan and queue them?"
        typer.confirm(f"This sweep has {many(len(specs), 'job')}. {wish}", err=True, abort=True)
    client, tag = connect(context), tag or f"sweep-{secrets.token_hex(3)}"
    files = _Files(client, file, yes=yes)
    requests = [files.send(spec, _as_changes(each)) for spec, each in zip(specs, settings, strict=True)]
    with job_file.named(file):
        plans = [client.post("/jobs:plan", body) for body in requests]
    if not as_json:
        _show_plans(settings, plans)
    made = [] if plan_only else _queue(client, file, requests, tag)
    if as_json:
        put_json({"tag": tag, "plans": plans, "jobs": made})
        return
    for job in made:
        put(job["id"])
    if made:
        say(f"queued {many(len(made), 'job')}. List them with `trainhop ls --tag {tag}`")
        say(f"They are listed best first at {client.url}/?tag={tag}")


def _queue(client: Client, file: str, requests: list[dict[str, Any]], tag: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    try:
        with job_file.named(file):
            for body in requests:
                made.append(client.post("/jobs", body, key=str(uuid.uuid4()), tag=tag))  # noqa: PERF401  counted below
    except Error:
        say(f"queued {len(made)} of {many(len(requests), 'job')}. List them with `trainhop ls --tag {tag}`")
        raise
    return made


def _show_plans(settings: list[tuple[Setting, ...]], plans: list[dict[str, Any]]) -> None:
    """One table of all jobs, what they take together, and what is to be known of them, each sentence once."""
    times = [min((p["seconds"] for p in each["places"] if p["seconds"] is not None), default=None) for each in plans]
    rows = [
        (_in_words(each), planned["steps"], _memory(planned), seconds(time), obstacle(planned["waits_for"]))
        for each, planned, time in zip(settings, plans, times, strict=True)
    ]
    table(("SETTINGS", "STEPS", "GPU MEMORY", "TIME", "WAITS FOR"), rows)
    known = [time for time in times if time is not None]
    whole = f", {seconds(sum(known))} of machine time" if known and len(known) == len(times) else ""
    say(f"{many(len(plans), 'job')}, {many(sum(planned['steps'] for planned in plans), 'step')}{whole}")
    for words in dict.fromkeys(clean(note) for planned in plans for note in planned.get("notes", ())):
        say(f"note: {words}")
    for finding in {(f["pointer"], f["check"]): f for planned in plans for f in planned.get("findings", ())}.values():
        show_finding(finding)


def _memory(planned: dict[str, Any]) -> str:
    return size(planned["gpu_bytes"]) if planned["gpu_bytes"] else "unknown"


@app.command("tag", rich_help_panel="Jobs")
def set_tags(
    context: typer.Context,
    job: JobArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="TAG...", help="The new tags. None removes all.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Replace the tags of a job. `trainhop ls --tag TAG` lists the jobs with a tag."""
    client = connect(context)
    kept = client.put(f"/jobs/{find_job(client, job)['id']}/tags", {"tags": tags or []})
    put_json(kept) if as_json else put(" ".join(kept["tags"]) or "no tags")
