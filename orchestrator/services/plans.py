"""Plan of a job before it is submitted: where it fits, in how many sessions, until when."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.domain.accounts import Actor
from orchestrator.domain.jobs import Job, StepTime
from orchestrator.domain.scheduling import (
    Blocker,
    Candidate,
    PendingJob,
    done_at,
    explain,
    finish_s,
    fits,
    memory,
    sessions,
)
from orchestrator.services import evaluation_prompts, evaluation_times
from orchestrator.services.audits import of_data
from orchestrator.services.capacity import is_offline, less_live, list_capacity
from orchestrator.services.context import Context
from orchestrator.services.data_gate import file_reports
from orchestrator.services.datasets import unused_keys
from orchestrator.services.dispatch import to_pending
from orchestrator.services.job_resolution import resolve
from worker.shared.data_check_list import Level
from worker.shared.job_spec import JobSpec


class PlannedPlace(BaseModel):
    """One place in a plan: sessions, seconds and the time of the end if the job ran there alone, or the blocker.

    All three are known once a step, of `step_s` seconds, has been timed on such a machine. If there is a quota,
    `hours_left` of `hours_total` are left until `refresh_at`, and `hours` is what the job would use of it.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True, ser_json_inf_nan="null")

    account: str
    provider: str
    sessions: int | None
    seconds: float | None
    obstacle: Blocker | None
    memory_bytes: int = 0
    step_s: float | None = None
    hours: float | None = None
    hours_left: float | None = None
    hours_total: float | None = None
    refresh_at: float | None = None
    done_at: float | None = None
    evaluation_s: float | None = None
    """About how long the evaluation takes that follows. None without one, or if no step has been timed there."""
    evaluation_in_last_session: bool | None = None
    """Whether the evaluation fits into the rest of the last session. Otherwise it gets a session of its own."""


class PlannedEvaluation(BaseModel):
    """The evaluation that follows: both models answer `prompts` prompts, with at most `max_new_tokens` tokens each.

    `judge` is the model that compares the answers, if there is one, and the bytes are what it needs on a GPU and on a
    CPU (null: not known).
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    prompts: int
    max_new_tokens: int
    judge: str | None = None
    judge_gpu_bytes: int | None = None
    judge_host_bytes: int | None = None


class FindingSample(BaseModel):
    """A part of a row's text around a finding, without secrets and personal data."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    line: int
    text: str


class DataFinding(BaseModel):
    """What one check has found: `count` of `total` rows (or prompts, or tokens), and the first lines.

    `other_lines` are those that the rows are copies of or contradict, one for each of `lines`. `advice` is what to do.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    check: str
    level: Level
    count: int
    total: int
    share: float
    words: str
    advice: str
    lines: tuple[int, ...]
    other_lines: tuple[int, ...]
    samples: tuple[FindingSample, ...]


class PlannedFinding(DataFinding):
    """What one check has found in a file of the job.

    `pointer` is its place in the job file, and `dataset` that among the datasets (null for rows that are held out of
    training: prompts, tasks, or the job's own split). `accepted`: the job file names the check in `accept_findings`.
    """

    dataset: int | None
    pointer: str
    accepted: bool


class Plan(BaseModel):
    """What would happen to a job.

    `gpu_bytes` and `host_bytes` are the memory it needs on a GPU and on a CPU (0: not known). `store_bytes` is the
    space that its checkpoints and adapter take at most in `store`, estimated from an earlier job. `done_at` is the
    earliest end over all places. `step_s` is the shortest time of a step.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True, ser_json_inf_nan="null")

    steps: int
    train_rows: int
    gpu_bytes: int
    host_bytes: int
    step_s: float | None
    basis: str
    places: tuple[PlannedPlace, ...]
    waits_for: Blocker | None
    store: str
    store_bytes: int | None
    done_at: float | None
    unused_keys: tuple[str, ...] = ()
    """Keys in the first rows of its data that training does not use."""
    audits: tuple[str, ...] = ()
    """Each data file's name with the result of its audit, or "not audited"."""
    evaluation: PlannedEvaluation | None = None
    """The evaluation that the job file asks for."""
    late_s: float | None = None
    """How long after its deadline the job would be done at the best place, where it cannot be done before."""

    findings: tuple[PlannedFinding, ...] = ()
    """What the data checks have found in its files."""
    unchecked: tuple[str, ...] = ()
    """Files that are still being checked, by their path. Rows that are held out by what they are."""

    notes: tuple[str, ...] = ()
    """What the job file's author should know, for example that a key has no effect, or what the model will do
    differently from what the rows teach.
    """


def plan(
    ctx: Context,
    actor: Actor,
    spec: JobSpec,
    *,
    first_step: int = 0,
    given: Collection[str] = (),
    begun: Mapping[str, Any] | None = None,
) -> Plan:
    """Where the job would run, in how many sessions, and what blocks it. Only uploaded data is kept.

    `given` and `begun` as in `resolve`.
    """
    resolved, need, notes = resolve(ctx, actor, spec, given, begun)
    findings, unchecked = _data(ctx, resolved)
    now = ctx.clock.now()
    with ctx.uow() as tx:
        accounts = tx.accounts.all()
        _, by_account = tx.leases.live_counts()
        step_time = tx.jobs.typical_step_time(resolved.base_model, resolved.global_batch_size * resolved.sequence_len)
        saved = tx.jobs.typical_checkpoint_bytes(resolved.base_model, resolved.lora_r)
        evaluation = evaluation_times.spec_of(resolved, resolved.evaluate) if resolved.evaluate else None
        unit_time = evaluation_times.typical_unit_time(tx, evaluation) if evaluation else StepTime()
    places = list_capacity(ctx, accounts)
    job = Job(
        id="plan",
        member_id=actor.member_id,
        name=resolved.name,
        spec=resolved.model_dump(mode="json"),
        total_steps=resolved.total_steps,
        priority=resolved.priority,
        deadline=resolved.deadline,
        gpu_bytes=need.gpu_bytes,
        host_bytes=need.host_bytes,
        head_step=first_step,
        gpu_step_s=step_time.gpu_s,
        host_step_s=step_time.host_s,
        created_at=now,
        updated_at=now,
    )
    waiting = to_pending(job)
    own = [p for p in places if p.member_id in (None, actor.member_id)]
    mine = [_planned(waiting, p, now) for p in own]
    if evaluation is not None:
        pairs = zip(mine, own, strict=True)
        mine = [_with_evaluation(ctx, planned, waiting, p, evaluation, unit_time) for planned, p in pairs]
    return Plan(
        steps=job.total_steps - first_step,
        train_rows=resolved.train_rows,
        gpu_bytes=need.gpu_bytes,
        host_bytes=need.host_bytes,
        step_s=min((p.step_s for p in mine if p.step_s is not None), default=None),
        basis="steps of earlier jobs of this shape"
        if step_time.is_known
        else "no similar job has run yet, so the time is known after three steps",
        places=tuple(mine),
        waits_for=explain(waiting, less_live(places, by_account), now),
        store=ctx.stores.current().name,
        store_bytes=None if saved is None else saved * (resolved.checkpoint.keep + 1),
        done_at=min((p.done_at for p in mine if p.done_at is not None), default=None),
        evaluation=_evaluation(resolved),
        late_s=_late(mine, resolved.deadline, now),
        unused_keys=unused_keys(ctx, resolved),
        audits=tuple(
            f"{data.name}: {data.words}"
            for data in of_data(ctx, actor.member_id, (entry.sha256 or "" for entry in resolved.datasets))
        ),
        findings=findings,
        unchecked=unchecked,
        notes=notes,
    )


def _evaluation(spec: JobSpec) -> PlannedEvaluation | None:
    asked = spec.evaluate
    if asked is None:
        return None
    found = PlannedEvaluation(prompts=evaluation_prompts.count(spec, asked), max_new_tokens=asked.max_new_tokens)
    if asked.judge is None:
        return found
    judge = {f"judge_{name}": getattr(asked.judge, name) for name in ("gpu_bytes", "host_bytes")}
    return found.model_copy(update={"judge": asked.judge.model, **judge})


def _with_evaluation(
    ctx: Context, planned: PlannedPlace, job: PendingJob, place: Candidate, spec: JobSpec, unit_time: StepTime
) -> PlannedPlace:
    """The place with what the evaluation takes there. A machine that cannot call starts a session of its own for it."""
    needed_s = evaluation_times.seconds(spec, unit_time, planned.step_s, gpu=place.gpu)
    if planned.obstacle is not None or planned.step_s is None or needed_s is None:
        return planned
    fits_in = not is_offline(ctx, place.provider) and evaluation_times.fits_last_session(job, place, spec, needed_s)
    return planned.model_copy(update={"evaluation_s": needed_s, "evaluation_in_last_session": fits_in})


def _data(ctx: Context, spec: JobSpec) -> tuple[tuple[PlannedFinding, ...], tuple[str, ...]]:
    findings: list[PlannedFinding] = []
    unchecked: list[str] = []
    accepted = frozenset(spec.accept_findings)
    for each in file_reports(ctx, spec, wait_s=ctx.checks.plan_wait_s if ctx.checks else 0.0):
        if each.report is None:
            unchecked.append(each.name)
            continue
        findings += [
            PlannedFinding(
                dataset=each.dataset, pointer=each.pointer, accepted=finding.check in accepted, **asdict(finding)
            )
            for finding in each.report.findings
        ]
    return tuple(findings), tuple(unchecked)


def _late(places: list[PlannedPlace], deadline: float | None, now: float) -> float | None:
    """How long after the deadline the best place is done.

    If one refresh of a quota is not enough, the time of the work alone is used. A place where no step has been timed
    may be fast enough.
    """
    if any(p.obstacle is None and p.seconds is None for p in places):
        return None
    ends = [p.done_at or now + p.seconds for p in places if p.seconds is not None]
    if deadline is None or not ends or min(ends) <= deadline:
        return None
    return min(ends) - deadline


def _planned(job: PendingJob, place: Candidate, now: float) -> PlannedPlace:
    obstacle = fits(job, place)
    known = PlannedPlace(
        account=place.name,
        provider=place.provider,
        sessions=None,
        seconds=None,
        obstacle=obstacle,
        memory_bytes=memory(job, place),
        hours_left=place.hours_left,
        hours_total=place.hours_total,
        refresh_at=place.refresh_at,
    )
    step_s = job.step_time.timed(gpu=place.gpu)
    if obstacle is not None or step_s is None:
        return known
    seconds = finish_s(job, place)
    return known.model_copy(
        update={
            "step_s": step_s,
            "sessions": sessions(job, place),
            "seconds": seconds,
            "hours": None if place.hours_left is None else seconds / 3600,
            "done_at": done_at(job, place, now),
        }
    )
