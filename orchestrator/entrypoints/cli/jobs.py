"""Commands about jobs: submit, plan, ls, show, and what a person may ask of one."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import Client, connect, find_job
from orchestrator.entrypoints.cli.output import (
    JsonFlag,
    clean,
    facts,
    moment,
    put,
    put_json,
    say,
    seconds,
    size,
    table,
)
from orchestrator.entrypoints.cli.phrases import (
    JobArgument,
    JobsArgument,
    chosen_checkpoint,
    listed,
    machine,
    note,
    obstacle,
    safe_age,
)

app = typer.Typer()

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A job file, YAML or JSON; - for stdin.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key; dots lead into nested ones.")
]


@app.command(rich_help_panel="Jobs")
def submit(
    context: typer.Context,
    file: FileArgument,
    changes: SetOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Queue a job; data files of this computer are sent along."""
    spec = job_file.check(file, job_file.read(file, changes or []))
    client = connect(context)
    body = job_file.send_data(client, file, spec)
    with job_file.named(file):
        job = client.post("/jobs", body, key=str(uuid.uuid4()))
    if watch:
        from orchestrator.entrypoints.cli.watch import follow

        say(f"submitted {job['id']}")
        raise typer.Exit(follow(client, job["id"], as_json=as_json))
    if as_json:
        put_json(job)
    else:
        put(job["id"])
        steps = "1 step" if job["total_steps"] == 1 else f"{job['total_steps']} steps"
        say(f"queued {clean(job['name'])}: {steps}; follow it with `trainhop watch {job['id']}`")


@app.command(rich_help_panel="Jobs")
def plan(context: typer.Context, file: FileArgument, changes: SetOption = None, as_json: JsonFlag = False) -> None:
    """Say where a job would run and for how long, without queueing it."""
    spec = job_file.check(file, job_file.read(file, changes or []))
    client = connect(context)
    body = job_file.send_data(client, file, spec)
    with job_file.named(file):
        planned = client.post("/jobs:plan", body)
    if as_json:
        put_json(planned)
        return
    facts(
        [
            ("steps", planned["steps"]),
            ("rows", planned["train_rows"]),
            ("memory", _memory(planned)),
            ("basis", planned["basis"]),
            ("space", _space(planned)),
            ("done at", moment(planned["done_at"]) if planned["done_at"] else None),
            ("waits for", obstacle(planned["waits_for"])),
            ("deadline", f"missed by {seconds(planned['late_s'])}" if planned.get("late_s") else None),
        ]
    )
    put()
    rows = [
        (
            p["account"],
            p["provider"],
            f"{p['step_s']:.2f} s" if p["step_s"] else None,
            p["sessions"],
            seconds(p["seconds"]),
            _quota(p),
            obstacle(p["obstacle"]),
        )
        for p in planned["places"]
    ]
    table(("ACCOUNT", "PROVIDER", "STEP", "SESSIONS", "TIME", "QUOTA", "NOTE"), rows)


def _memory(planned: dict[str, Any]) -> str:
    if not planned["gpu_bytes"]:
        return "not known"
    return f"{size(planned['gpu_bytes'])} on a GPU, {size(planned['host_bytes'])} on a CPU"


def _space(planned: dict[str, Any]) -> str:
    needed = planned["store_bytes"]
    return f"{size(needed)} in {planned['store']}" if needed else "known after the first checkpoint of such a job"


def _quota(place: dict[str, Any]) -> str:
    """What the job would use of the account's hours, and what is left of them."""
    if place["hours_left"] is None:
        return ""
    left = f"{place['hours_left']:.1f}" + (f" of {place['hours_total']:g}" if place["hours_total"] else "") + " h left"
    return f"{place['hours']:.1f} h, {left}" if place["hours"] is not None else left


@app.command("ls", rich_help_panel="Jobs")
def list_jobs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, for example running.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this in their name.")] = None,
    member: Annotated[str | None, typer.Option(help="Only jobs of this member, by name or id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    found = connect(context).pages("/jobs", limit, state=state, name=name, member=member)
    if as_json:
        put_json(found)
        return
    table(
        ("ID", "NAME", "STATE", "STEP", "LOSS", "LEFT", "MACHINE", "NOTE"),
        [(j["id"], j["name"], j["state"], _steps(j), _loss(j), _left(j), machine(j), note(j)) for j in found],
    )


def _steps(job: dict[str, Any]) -> str:
    return f"{job['step']}/{job['total_steps']}"


def _loss(job: dict[str, Any]) -> str:
    return f"{job['loss']['last']:.4f}" if job.get("loss") and job["loss"].get("last") is not None else ""


def _left(job: dict[str, Any]) -> str:
    return seconds(job["eta_seconds"]) if job.get("eta_seconds") is not None else ""


@app.command(rich_help_panel="Jobs")
def show(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show one job and the sessions it has had."""
    client = connect(context)
    found = find_job(client, job)
    sessions = listed(client.get(f"/jobs/{found['id']}/sessions"))
    if as_json:
        put_json({**found, "sessions": sessions})
        return
    facts(_described(found))
    if sessions:
        put()
        session_table(sessions)


def _described(job: dict[str, Any]) -> list[tuple[str, Any]]:
    head, adapter, loss = job.get("head"), job.get("adapter"), job.get("loss")
    session = job.get("session")
    return [
        ("job", job["id"]),
        ("name", job["name"]),
        ("member", job["member"]),
        ("state", job["state"]),
        ("note", note(job)),
        ("base model", (job.get("spec") or {}).get("base_model")),
        ("step", f"{job['step']} of {job['total_steps']}"),
        ("loss", f"{loss['first']:.4f} -> {loss['last']:.4f}" if loss and None not in loss.values() else None),
        ("step time", f"{job['seconds_per_step']:.2f} s" if job.get("seconds_per_step") else None),
        ("time left", _left(job)),
        ("machine", f"{machine(job)}, {session['phase']}, {session['id']}" if session else None),
        ("safe point", f"step {head['step']}, {safe_age(head)} ago, {head['sha256'][:12]}" if head else "none yet"),
        ("hand-offs", job.get("handoffs")),
        ("steps repeated", job.get("steps_repeated")),
        ("priority", job["priority"]),
        ("deadline", moment(job["deadline"]) if job.get("deadline") else None),
        ("submitted", moment(job["created_at"])),
        ("cloned from", _origin(job)),
        ("adapter", f"{adapter['sha256']} ({size(adapter['bytes'])})" if adapter else None),
    ]


def _origin(job: dict[str, Any]) -> str | None:
    begin = f", its step {job['first_step']}" if job.get("first_step") else ""
    return f"{job['cloned_from']}{begin}" if job.get("cloned_from") else None


def session_table(sessions: list[dict[str, Any]]) -> None:
    """Who trained which steps."""
    rows = [
        (
            s["id"],
            f"{s['provider']}/{s['account']}",
            s["state"],
            s.get("outcome"),
            f"{s['first_step']} -> {s['last_step']}",
            seconds(s.get("seconds")),
            s.get("fidelity"),
            s.get("detail"),
        )
        for s in sessions
    ]
    table(("SESSION", "MACHINE", "STATE", "OUTCOME", "STEPS", "TIME", "FIDELITY", "NOTE"), rows)


def _ask(context: typer.Context, job: str, verb: str, as_json: bool, body: Any = None) -> None:
    client: Client = connect(context)
    answer = client.post(f"/jobs/{find_job(client, job)['id']}:{verb}", body)
    if as_json:
        put_json(answer)
        return
    say(f"{answer['id']} is {answer['state']}" + (f": {clean(note(answer))}" if note(answer) else ""))


@app.command(rich_help_panel="Jobs")
def pause(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Stop a job at its next step's end, with everything saved."""
    _ask(context, job, "pause", as_json)


@app.command(rich_help_panel="Jobs")
def handover(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Move a running job on to the next free machine; it saves first."""
    _ask(context, job, "handover", as_json)


@app.command(rich_help_panel="Jobs")
def resume(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Queue a paused job again."""
    _ask(context, job, "resume", as_json)


@app.command(rich_help_panel="Jobs")
def cancel(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """End a job."""
    _ask(context, job, "cancel", as_json)


@app.command(rich_help_panel="Jobs")
def retry(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Queue a failed or cancelled job again, from its last checkpoint."""
    _ask(context, job, "retry", as_json)


@app.command("rm", rich_help_panel="Jobs")
def remove(
    context: typer.Context,
    jobs: JobsArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete jobs that have ended: checkpoints, adapter, curves and logs, for good."""
    client = connect(context)
    for job in [find_job(client, given) for given in jobs]:
        if yes or typer.confirm(f"Delete {job['id']} ({clean(job['name'])}) with all that it has made?", err=True):
            client.delete(f"/jobs/{job['id']}")
            say(f"{job['id']} is deleted")


@app.command(rich_help_panel="Jobs", context_settings={"ignore_unknown_options": True})  # -3 is no option
def priority(
    context: typer.Context,
    job: JobArgument,
    value: Annotated[int, typer.Argument(metavar="N", help="Higher goes first; above 0 only for admins.")],
    as_json: JsonFlag = False,
) -> None:
    """Move a job in the queue."""
    _ask(context, job, "priority", as_json, {"priority": value})


@app.command(rich_help_panel="Jobs")
def clone(
    context: typer.Context,
    job: JobArgument,
    changes: SetOption = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", metavar="CHECKPOINT", help="Begin with this one: its step, or its sha256's beginning."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Queue the same job anew, from the start or from a checkpoint, with some keys changed."""
    client = connect(context)
    found = find_job(client, job)
    body = job_file.changed(found["spec"], changes or [])
    path = f"/jobs/{found['id']}"
    query = {}
    if begin is not None:
        query["from"] = chosen_checkpoint(listed(client.get(f"{path}/checkpoints")), begin, "--from")["sha256"]
    with job_file.named("--set"):
        made = client.post(f"{path}:clone", body, key=str(uuid.uuid4()), **query)
    if as_json:
        put_json(made)
    else:
        put(made["id"])
