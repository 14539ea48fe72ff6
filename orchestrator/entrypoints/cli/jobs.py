"""Commands for jobs: submit, plan, list, show, and the actions on a job."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import Client, connect
from orchestrator.entrypoints.cli.evaluations import evaluations_of, show_evaluations
from orchestrator.entrypoints.cli.findings import show_finding
from orchestrator.entrypoints.cli.judges import judgements_of, show_judgements
from orchestrator.entrypoints.cli.output import (
    JsonFlag,
    age,
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
    FileArgument,
    JobArgument,
    JobsArgument,
    SendOption,
    SetOption,
    chosen_checkpoint,
    if_allowed,
    listed,
    machine,
    note,
    obstacle,
    relation,
    safe_age,
    stored_state,
)
from orchestrator.entrypoints.cli.pushes import in_words, pushes_of
from orchestrator.entrypoints.cli.views import start_of
from trainhop.connection import find_job
from trainhop.errors import Error
from trainhop.job_file import check
from trainhop.polling import FINAL, Timing, state_word
from worker.shared.counted_words import many

app = typer.Typer()

CLEANUP_S = 120.0
"""How long `rm` waits until the last machine of an ended job is cleaned up."""


@app.command(rich_help_panel="Jobs")
def submit(
    context: typer.Context,
    file: FileArgument,
    changes: SetOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    yes: SendOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job. Local data files are uploaded."""
    spec = check(file, job_file.read(file, changes or []))
    client = connect(context)
    body = job_file.send_data(client, file, spec, changes or (), yes=yes)
    with job_file.named(file):
        job = client.post("/jobs", body, key=str(uuid.uuid4()))
    _say_notes(job)
    if watch:
        from orchestrator.entrypoints.cli.watch import follow

        say(f"submitted {job['id']}")
        raise typer.Exit(follow(client, job["id"], as_json=as_json))
    if as_json:
        put_json(job)
    else:
        put(job["id"])
        steps = many(job["total_steps"], "step")
        say(f"queued {clean(job['name'])}: {steps}. Follow it with `trainhop watch {job['id']}`")


def _say_notes(job: dict[str, Any]) -> None:
    for text in job.get("notes", ()):  # an older server sends none
        say(f"note: {clean(text)}")


@app.command(rich_help_panel="Jobs")
def plan(
    context: typer.Context,
    file: FileArgument,
    changes: SetOption = None,
    yes: SendOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Show where a job would run and how long it would take, without queueing it."""
    spec = check(file, job_file.read(file, changes or []))
    client = connect(context)
    body = job_file.send_data(client, file, spec, changes or (), yes=yes)
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
            *(("data", words) for words in planned.get("audits", ())),
            ("not used", clean(", ".join(planned.get("unused_keys") or ())) or None),
            ("evaluation", _evaluation(planned)),
            ("deadline", f"missed by {seconds(planned['late_s'])}" if planned.get("late_s") else None),
            *(("note", words) for words in planned.get("notes", ())),
            *(("data", f"{clean(path)} is still being checked") for path in planned.get("unchecked", ())),
        ]
    )
    put()
    for finding in planned.get("findings", ()):
        show_finding(finding)
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
        return "unknown"
    return f"{size(planned['gpu_bytes'])} on a GPU, {size(planned['host_bytes'])} on a CPU"


def _space(planned: dict[str, Any]) -> str:
    needed = planned["store_bytes"]
    return f"{size(needed)} in {planned['store']}" if needed else "unknown until such a job has a checkpoint"


def _evaluation(planned: dict[str, Any]) -> str | None:
    """The evaluation that follows. An older server knows none."""
    asked = planned.get("evaluation")
    if not asked:
        return None
    words = f"{many(asked['prompts'], 'prompt')}, 2 answers each of at most {many(asked['max_new_tokens'], 'token')}"
    times = [
        f"{place['account']}: about {seconds(place['evaluation_s'])}, "
        + ("in the last session" if place["evaluation_in_last_session"] else "in a session of its own")
        for place in planned["places"]
        if place["evaluation_s"] is not None
    ]
    if asked.get("judge"):
        memory = size(asked["judge_gpu_bytes"]) if asked["judge_gpu_bytes"] else "unknown memory"
        words += f", judge model {asked['judge']}, {memory} on a GPU"
    return clean("; ".join([words, *times]))


def _quota(place: dict[str, Any]) -> str:
    """Quota hours that the job would use, and the hours left."""
    if place["hours_left"] is None:
        return ""
    left = f"{place['hours_left']:.1f}" + (f" of {place['hours_total']:g}" if place["hours_total"] else "") + " h left"
    return f"{place['hours']:.1f} h, {left}" if place["hours"] is not None else left


@app.command("ls", rich_help_panel="Jobs")
def list_jobs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, for example running.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this text in the name.")] = None,
    member: Annotated[str | None, typer.Option(help="Only jobs of this member, by name or id.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    items = connect(context).pages("/jobs", limit, state=stored_state(state), name=name, member=member, tag=tag)
    if as_json:
        put_json(items)
        return
    table(
        ("ID", "NAME", "MEMBER", "STATE", "AGE", "STEP", "LOSS", "LEFT", "MACHINE", "NOTE"),
        [_row(job) for job in items],
    )


def _row(job: dict[str, Any]) -> tuple[Any, ...]:
    who, state, since = job["member"], state_word(job["state"]), seconds(age(job["created_at"]))
    return (job["id"], job["name"], who, state, since, _steps(job), _loss(job), _left(job), machine(job), note(job))


def _steps(job: dict[str, Any]) -> str:
    return f"{job['step']}/{job['total_steps']}"


def _loss(job: dict[str, Any]) -> str:
    return f"{job['loss']['last']:.4f}" if job.get("loss") and job["loss"].get("last") is not None else ""


def _left(job: dict[str, Any]) -> str:
    return seconds(job["eta_seconds"]) if job.get("eta_seconds") is not None else ""


@app.command(rich_help_panel="Jobs")
def show(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show a job and its sessions."""
    client = connect(context)
    record = find_job(client, job)
    sessions = listed(client.get(f"/jobs/{record['id']}/sessions"))
    evaluations = evaluations_of(client, record["id"])
    judged = if_allowed(lambda: judgements_of(client, record["id"])) if evaluations else []
    pushes = if_allowed(lambda: pushes_of(client, record["id"])) if record.get("adapter") else []
    if as_json:
        put_json({**record, "sessions": sessions, "evaluations": evaluations, "judgements": judged, "pushes": pushes})
        return
    facts([*_described(record), *(("hub", in_words(each)) for each in pushes[:1])])
    show_evaluations(record, evaluations)
    show_judgements(judged)
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
        ("state", state_word(job["state"])),
        ("note", note(job)),
        ("base model", (job.get("spec") or {}).get("base_model")),
        ("step", f"{job['step']} of {job['total_steps']}"),
        ("loss", f"{loss['first']:.4f} -> {loss['last']:.4f}" if loss and None not in loss.values() else None),
        ("step time", f"{job['seconds_per_step']:.2f} s" if job.get("seconds_per_step") else None),
        ("time left", _left(job)),
        ("machine", f"{machine(job)}, {session['phase']}, {session['id']}" if session else None),
        (
            "last checkpoint",
            f"step {head['step']}, {safe_age(head)} ago, {head['sha256'][:12]}" if head else "none yet",
        ),
        ("hand-offs", job.get("handoffs")),
        ("steps repeated", job.get("steps_repeated")),
        ("priority", job["priority"]),
        ("deadline", moment(job["deadline"]) if job.get("deadline") else None),
        ("submitted", moment(job["created_at"])),
        (relation(job.get("spec") or {}), _origin(job)),
        ("continues from", start_of(job.get("spec") or {})),
        ("adapter", f"{adapter['sha256']} ({size(adapter['bytes'])})" if adapter else None),
    ]


def _origin(job: dict[str, Any]) -> str | None:
    begin = f" at step {job['first_step']}" if job.get("first_step") else ""
    return f"{job['cloned_from']}{begin}" if job.get("cloned_from") else None


def session_table(sessions: list[dict[str, Any]]) -> None:
    """A table of sessions and the steps they trained."""
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
    say(f"{answer['id']} is {state_word(answer['state'])}" + (f": {clean(note(answer))}" if note(answer) else ""))


@app.command(rich_help_panel="Jobs")
def pause(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Pause a job. It saves a checkpoint after the current step."""
    _ask(context, job, "pause", as_json)


@app.command(rich_help_panel="Jobs")
def handover(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Move a running job to another machine. It saves a checkpoint first."""
    _ask(context, job, "handover", as_json)


@app.command(rich_help_panel="Jobs")
def resume(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Resume a paused job."""
    _ask(context, job, "resume", as_json)


@app.command(rich_help_panel="Jobs")
def cancel(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Cancel a job."""
    _ask(context, job, "cancel", as_json)


@app.command(rich_help_panel="Jobs")
def retry(context: typer.Context, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Retry a failed or cancelled job from its last checkpoint."""
    _ask(context, job, "retry", as_json)


@app.command("rm", rich_help_panel="Jobs")
def remove(
    context: typer.Context,
    jobs: JobsArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
) -> None:
    """Delete ended jobs with their checkpoints, adapters, metrics and logs."""
    client = connect(context)
    for job in [find_job(client, given) for given in jobs]:
        if yes or typer.confirm(
            f"Delete {job['id']} ({clean(job['name'])}) with its checkpoints, adapter, metrics and logs?", err=True
        ):
            delete_ended(client, job)
            say(f"deleted {job['id']}")


def delete_ended(client: Client, job: dict[str, Any], timing: Timing | None = None) -> None:
    """Delete a job. If it has just ended, wait up to `CLEANUP_S` until its last machine is cleaned up."""
    timing = timing or Timing()
    until = timing.clock() + CLEANUP_S
    while True:
        try:
            return client.delete(f"/jobs/{job['id']}")
        except Error as error:
            if error.status != HTTPStatus.CONFLICT or job["state"] not in FINAL or timing.clock() > until:
                raise
        timing.sleep(timing.period_s)


@app.command(rich_help_panel="Jobs", context_settings={"ignore_unknown_options": True})  # -3 is not an option
def priority(
    context: typer.Context,
    job: JobArgument,
    value: Annotated[int, typer.Argument(metavar="N", help="Higher runs first. Above 0 needs an admin.")],
    as_json: JsonFlag = False,
) -> None:
    """Change a job's priority in the queue."""
    _ask(context, job, "priority", as_json, {"priority": value})


@app.command(rich_help_panel="Jobs")
def clone(
    context: typer.Context,
    job: JobArgument,
    changes: SetOption = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", metavar="CHECKPOINT", help="Start from this checkpoint, by step or sha256 prefix."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a copy of a job with changed keys, from the start or from a checkpoint."""
    client = connect(context)
    record = find_job(client, job)
    body = job_file.changed(record["spec"], changes or [])
    path = f"/jobs/{record['id']}"
    query = {}
    if begin is not None:
        query["from"] = chosen_checkpoint(listed(client.get(f"{path}/checkpoints")), begin, "--from")["sha256"]
    with job_file.named("--set"):
        made = client.post(f"{path}:clone", body, key=str(uuid.uuid4()), **query)
    _say_notes(made)
    if as_json:
        put_json(made)
    else:
        put(made["id"])
