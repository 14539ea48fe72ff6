"""What would happen to a job if it were submitted: where it fits, in how many sessions, until when."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.domain.model import Job
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
from orchestrator.ports.providers import Context
from orchestrator.services.dispatch import less_live, list_capacity, to_pending
from orchestrator.services.jobs import Actor, resolve
from worker.shared.messages import JobSpec


@dataclass(frozen=True, kw_only=True)
class PlannedPlace:
    """One place in a plan: sessions, seconds and the time of the end if the job ran there alone, or what is in the way.

    All three are known once a step, of `step_s` seconds, has been timed on such a machine. Of the quota, where there is one,
    `hours_left` of `hours_total` are left until `refresh_at`; `hours` is what the job would use of it.
    """

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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would happen to a job.

    `gpu_bytes` and `host_bytes` are the memory it needs on a GPU and on a CPU (0: not known). `store_bytes` is the
    space that its checkpoints and adapter take at most, by the size of an earlier job's, in `store`;
    `done_at` the earliest end over all places, and `step_s` what a step takes at the quickest.
    """

    steps: int
    train_rows: int
    gpu_bytes: int
    host_bytes: int
    step_s: float | None
    basis: str
    places: tuple[PlannedPlace, ...]
    waits_for: Blocker | None
    store: str = ""
    store_bytes: int | None = None
    done_at: float | None = None
    late_s: float | None = None
    """How long after its deadline the job would be done at the best place, where it cannot be done before."""


def plan(ctx: Context, actor: Actor, spec: JobSpec, *, first_step: int = 0) -> Plan:
    """What would run where, in how many sessions, and what stands in the way; nothing is kept but uploaded data."""
    resolved, need = resolve(ctx, actor, spec)
    now = ctx.clock.now()
    with ctx.uow() as tx:
        accounts = tx.accounts()
        _, by_account = tx.live_counts()
        step_time = tx.typical_step_time(resolved.base_model, resolved.global_batch_size * resolved.sequence_len)
        saved = tx.typical_checkpoint_bytes(resolved.base_model, resolved.lora_r)
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
    mine = [_planned(waiting, p, now) for p in places if p.member_id in (None, actor.member_id)]
    return Plan(
        steps=job.total_steps - first_step,
        train_rows=resolved.train_rows,
        gpu_bytes=need.gpu_bytes,
        host_bytes=need.host_bytes,
        step_s=min((p.step_s for p in mine if p.step_s is not None), default=None),
        basis="steps of earlier jobs of this shape"
        if step_time.is_known
        else "no such job has run here yet: known after three steps",
        places=tuple(mine),
        waits_for=explain(waiting, less_live(places, by_account), now),
        store=ctx.stores.current().name,
        store_bytes=None if saved is None else saved * (resolved.checkpoint.keep + 1),
        done_at=min((p.done_at for p in mine if p.done_at is not None), default=None),
        late_s=_late(mine, resolved.deadline, now),
    )


def _late(places: list[PlannedPlace], deadline: float | None, now: float) -> float | None:
    """How long after the deadline the best place is done.

    Where even one refresh of a quota is not enough, the time that the work alone takes has to do; a place where no step has
    been timed may be quick enough.
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
    return replace(
        known,
        step_s=step_s,
        sessions=sessions(job, place),
        seconds=seconds,
        hours=None if place.hours_left is None else seconds / 3600,
        done_at=done_at(job, place, now),
    )
