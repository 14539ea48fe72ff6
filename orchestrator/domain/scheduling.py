"""Scheduling policy as pure functions over plain data, the same for the server and for simulations.

It chooses places for jobs, explains why jobs wait, sets retry times and selects checkpoints to prune.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from orchestrator.domain.accounts import Account
from orchestrator.domain.jobs import StepTime
from orchestrator.domain.lifecycle import EndReason

SAVES_TO_SPARE = 2
"""A session is started only if it has time for its start-up and this many saves."""

MAX_RETRY_S = 300.0

LAST_SAVE_S = 10.0
"""Duration of the last save of a session, until one has been measured."""


@dataclass(frozen=True, kw_only=True)
class PendingJob:
    """A queued job as the policy sees it.

    `gpu_bytes` and `host_bytes` are the memory it needs on a GPU and on a CPU (0: not known). `from_folder` says that
    its base model is on the server's disk, `needs_gpu` that its backend trains only on GPUs, `needs_no_gpu` that it
    never uses one, `needs_calls` that its machine must be able to call the server. Machines of the
    accounts `too_small_at` had too little memory for it.
    """

    job_id: str
    member_id: str
    priority: int
    deadline: float | None
    created_at: float
    not_before: float = 0.0
    providers: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    max_session_s: float | None = None
    gpu_bytes: int = 0
    host_bytes: int = 0
    steps_left: int = 0
    step_time: StepTime = field(default_factory=StepTime)
    from_folder: bool = False
    needs_gpu: bool = False
    needs_no_gpu: bool = False
    needs_calls: bool = False
    too_small_at: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an account offers: `slots` sessions, each of at most `session_s` seconds on a machine with `memory_bytes`.

    The memory is that of its `gpu`, if it has one. `hours_left` of `hours_total` is the rest of the provider's quota
    (None: no quota) until it is refreshed at `refresh_at`. `closed_reason` says why nothing can start there at all,
    until `open_at` if that is known. With `any_folder` its machines can read models on the server's disk. With
    `has_cpu` a job that never uses a GPU takes nothing of the quota.
    """

    slots: int
    session_s: float
    memory_bytes: int = 0
    gpu: bool = False
    any_folder: bool = True
    has_cpu: bool = False
    start_up_s: float = 60.0
    hours_left: float | None = None
    hours_total: float | None = None
    refresh_at: float | None = None
    closed_reason: str = ""
    open_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate(Capacity):
    """An account as the policy sees it: its capacity and its owner (`member_id` None: a pool).

    `can_call` says that its machines can call the server.
    """

    account_id: str
    provider: str
    name: str
    member_id: str | None
    save_s: float = LAST_SAVE_S
    can_call: bool = True

    @classmethod
    def of(cls, account: Account, capacity: Capacity, *, can_call: bool = True) -> Candidate:
        """The candidate for an account with this capacity."""
        return cls(
            account_id=account.id,
            provider=account.provider,
            name=account.name,
            member_id=account.member_id,
            can_call=can_call,
            **vars(capacity),
        )


@dataclass(frozen=True, kw_only=True)
class Blocker:
    """Why a job cannot start at a place, and when that may change (None: not by itself)."""

    reason: str
    until: float | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A job and the place it goes to, for at most `budget_s` seconds."""

    job_id: str
    account_id: str
    provider: str
    budget_s: float


def fits(job: PendingJob, place: Candidate) -> Blocker | None:
    """None if the job may run there, else the first blocker, in the order a person would check."""
    return _not_meant(job, place) or _not_able(job, place) or _not_now(job, place)


def _not_meant(job: PendingJob, place: Candidate) -> Blocker | None:
    if place.member_id is not None and place.member_id != job.member_id:
        return Blocker(reason=f"{place.name} belongs to another member")
    if job.providers and place.provider not in job.providers:
        return Blocker(reason=f"the job asks for {', '.join(job.providers)}")
    if job.accounts and not {place.account_id, place.name} & set(job.accounts):
        return Blocker(reason=f"the job asks for {', '.join(job.accounts)}")
    return None


def _not_able(job: PendingJob, place: Candidate) -> Blocker | None:
    if job.from_folder and not place.any_folder:
        sees_not = f"the base model is a folder on the server, which {place.name} cannot read"
        return Blocker(reason=f"{sees_not}; use its Hugging Face id")
    if job.needs_gpu and not place.gpu:
        return Blocker(reason=f"the job's backend needs a GPU, but {place.name} has none; set `backend: auto`")
    if job.needs_calls and not place.can_call:
        return Blocker(reason=f"machines of {place.name} cannot call this server; set TRAINHOP_PUBLIC_URL")
    need = memory(job, place)
    if place.memory_bytes and need > place.memory_bytes:
        what = "GPU memory" if place.gpu else "memory"
        have = f"{place.name} has {place.memory_bytes / 2**30:.1f}"
        return Blocker(reason=f"the job needs about {need / 2**30:.1f} GiB of {what}, {have}")
    return None


def _not_now(job: PendingJob, place: Candidate) -> Blocker | None:
    if place.closed_reason:
        return Blocker(reason=f"{place.name}: {place.closed_reason}", until=place.open_at)
    least = place.start_up_s + SAVES_TO_SPARE * place.save_s
    hours_left = _hours_left(job, place)
    if hours_left is not None and hours_left * 3600 < least:
        return Blocker(reason=_quota_in_words(job, place, least), until=place.refresh_at)
    if place.slots < 1:
        return Blocker(reason=f"all machines of {place.name} are busy")
    return None


def _hours_left(job: PendingJob, place: Candidate) -> float | None:
    """The rest of the quota that limits the job there. None if nothing does."""
    return None if job.needs_no_gpu and place.has_cpu else place.hours_left


def large_enough(job: PendingJob, places: Iterable[Candidate]) -> list[Candidate]:
    """Those of `places` that were not too small for the job, or all of them if the job can run on no other."""
    places = list(places)
    others = [p for p in places if p.account_id not in job.too_small_at]
    return others if any(_may_ever_run(job, p) for p in others) else places


def _may_ever_run(job: PendingJob, place: Candidate) -> bool:
    is_shut = place.closed_reason and place.open_at is None
    return not (is_shut or _not_meant(job, place) or _not_able(job, place))


def memory(job: PendingJob, place: Candidate) -> int:
    """Bytes that the job needs at such a place. 0 if that is not known."""
    return job.gpu_bytes if place.gpu else job.host_bytes


def _quota_in_words(job: PendingJob, place: Candidate, least: float) -> str:
    """For example "alice's GPU hours: 0.4 of 30 left, refresh Sat 00:00 UTC; job needs 1.1 h"."""
    left = f"{place.hours_left:.1f}" + (f" of {place.hours_total:g}" if place.hours_total is not None else "")
    when = f", refresh {_weekday(place.refresh_at)}" if place.refresh_at is not None else ""
    whole = replace(place, hours_left=None)
    timed = job.step_time.timed(gpu=place.gpu) is not None
    need = max(least, finish_s(job, whole)) if timed else least
    needs = f"{need / 3600:.1f} h" if need >= 360.0 else f"{need / 60:.0f} min"
    return f"{place.name} GPU hours: {left} left{when}; job needs {'' if timed else 'at least '}{needs}"


def _weekday(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%a %H:%M UTC")


def finish_s(job: PendingJob, place: Candidate) -> float:
    """Estimated seconds until the job is done if it ran at `place` alone, sessions and start-ups included."""
    return _alone(job, place)[1]


def sessions(job: PendingJob, place: Candidate) -> int:
    """Estimated number of sessions until the job is done if it ran at `place` alone."""
    return _alone(job, place)[0]


def _alone(job: PendingJob, place: Candidate) -> tuple[int, float]:
    return estimate_sessions(_work_s(job, place), budget(job, place), place.start_up_s + place.save_s)


def estimate_sessions(work_s: float, session_s: float, overhead_s: float) -> tuple[int, float]:
    """How many sessions of `session_s` the work takes, and its total seconds. Each session also costs `overhead_s`."""
    count = max(1, int(-(-work_s // max(1.0, session_s - overhead_s))))
    return count, work_s + count * overhead_s


def rest_of_last_session(job: PendingJob, place: Candidate) -> float:
    """Estimated seconds that are left of the last session when the job is done, if it ran at `place` alone."""
    count, whole_s = _alone(job, place)
    return max(0.0, count * budget(job, place) - whole_s)


def _work_s(job: PendingJob, place: Candidate) -> float:
    return job.steps_left * job.step_time.guess(gpu=place.gpu)


def budget(job: PendingJob, place: Candidate) -> float:
    """Seconds one session of this job may last there."""
    limits = [place.session_s]
    if job.max_session_s is not None:
        limits.append(job.max_session_s)
    hours_left = _hours_left(job, place)
    if hours_left is not None:
        limits.append(hours_left * 3600)
    return min(limits)


def rank(
    jobs: Iterable[PendingJob], places: Sequence[Candidate], running: dict[str, int], now: float
) -> list[PendingJob]:
    """Jobs in the order they are served: feasible deadlines, priority, fair share among members, age.

    `running` counts live leases by member. A deadline that no place can meet is ignored, because it would only delay
    others. A deadline counts as feasible until a step has been timed.
    """

    def key(job: PendingJob) -> tuple[float, int, int, float, str]:
        ends = (finish_s(job, p) if job.step_time.is_known else 0.0 for p in places if fits(job, p) is None)
        best = min(ends, default=float("inf"))
        feasible = job.deadline is not None and now + best <= job.deadline
        due = job.deadline if feasible and job.deadline is not None else float("inf")
        return (due, -job.priority, running.get(job.member_id, 0), job.created_at, job.job_id)

    return sorted(jobs, key=key)


def match(
    jobs: Iterable[PendingJob], places: Sequence[Candidate], running: dict[str, int], now: float
) -> list[Placement]:
    """Fill free places: repeatedly take the best-ranked job that fits somewhere, and the place that finishes it first.

    Fair share is computed anew after each choice. Otherwise one member's hundred jobs would go before another's one.
    """
    open_places = {p.account_id: p for p in places}
    counts = dict(running)
    chosen: list[Placement] = []
    queues: dict[str, list[PendingJob]] = {}
    for job in rank((j for j in jobs if j.not_before <= now), places, {}, now):
        queues.setdefault(job.member_id, []).append(job)
    while any(p.slots for p in open_places.values()) and queues:
        heads = rank((queue[0] for queue in queues.values()), list(open_places.values()), counts, now)
        job = heads[0]
        queues[job.member_id].pop(0)
        if not queues[job.member_id]:
            del queues[job.member_id]
        fitting = [p for p in large_enough(job, open_places.values()) if fits(job, p) is None]
        if not fitting:
            continue
        place = min(fitting, key=lambda p: (finish_s(job, p), p.refresh_at or float("inf"), p.account_id))
        seconds = budget(job, place)
        open_places[place.account_id] = _taken(place, 0.0 if job.needs_no_gpu and place.has_cpu else seconds)
        counts[job.member_id] = counts.get(job.member_id, 0) + 1
        chosen.append(
            Placement(job_id=job.job_id, account_id=place.account_id, provider=place.provider, budget_s=seconds)
        )
    return chosen


def _taken(place: Candidate, seconds: float) -> Candidate:
    """The place with one session less, and with the quota that the session may use deducted."""
    left = None if place.hours_left is None else max(0.0, place.hours_left - seconds / 3600)
    return replace(place, slots=place.slots - 1, hours_left=left)


def done_at(job: PendingJob, place: Candidate, now: float) -> float | None:
    """When the job would be done at `place` alone, with at most one refresh of its quota. None if it needs more."""
    whole = replace(place, hours_left=None)
    need = finish_s(job, whole)
    left = None if place.hours_left is None else place.hours_left * 3600
    if left is None or need <= left:
        return now + need
    if place.refresh_at is None or place.hours_total is None or need - left > place.hours_total * 3600:
        return None
    return place.refresh_at + need - left


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A job is done in `seconds` from now, after `sessions` more sessions besides the running one.

    `waits_until` is when the quota that the job has to wait for is refreshed.
    """

    seconds: float
    sessions: int
    waits_until: float | None = None


def forecast(
    *,
    steps: int,
    step_s: float,
    step_time: StepTime,
    session_left_s: float | None,
    places: Sequence[Candidate],
    now: float,
) -> Forecast | None:
    """When `steps` more steps are done. None if no known place could continue them.

    `session_left_s` is the time left in the running session (None: none runs), and `step_s` the time of a step there.
    `places` are those that the job may use next, at its `step_time`.
    """
    here = max(0.0, session_left_s - LAST_SAVE_S) if session_left_s is not None else 0.0
    if session_left_s is not None and steps * step_s <= here:
        return Forecast(seconds=steps * step_s, sessions=0)
    rest = steps - (here / step_s if here else 0.0)
    forecasts = [_elsewhere(rest * step_time.guess(gpu=p.gpu), here, p, now) for p in places if p.session_s > 0]
    return min(forecasts, key=lambda f: f.seconds, default=None)


def _elsewhere(work_s: float, already_s: float, place: Candidate, now: float) -> Forecast:
    sessions, spent_s = estimate_sessions(work_s, place.session_s, place.start_up_s + place.save_s)
    short = place.hours_left is not None and place.hours_left * 3600 - already_s < spent_s
    if not short or place.refresh_at is None or place.refresh_at <= now:
        return Forecast(seconds=already_s + spent_s, sessions=sessions)
    before_s = max(0.0, (place.hours_left or 0.0) * 3600 - already_s)
    waiting_s = (place.refresh_at - now) + (spent_s - before_s)
    return Forecast(seconds=max(waiting_s, already_s + spent_s), sessions=sessions, waits_until=place.refresh_at)


def explain(job: PendingJob, places: Sequence[Candidate], now: float) -> Blocker | None:
    """Why a queued job waits: the nearest blocker over all places its owner may use, or None if it starts at once."""
    if job.not_before > now:
        return Blocker(reason="waiting before the next attempt", until=job.not_before)
    if not places:
        return Blocker(reason="there is no account; connect an account or a pool")
    own = [p for p in places if p.member_id in (None, job.member_id)]
    if job.accounts and not any({p.account_id, p.name} & set(job.accounts) for p in own):
        names = ", ".join(job.accounts)
        return Blocker(reason=f"the job asks for {names}, but this member has no such account or pool")
    fits_or_blockers = [fits(job, p) for p in large_enough(job, own)]
    if any(o is None for o in fits_or_blockers):
        return None
    blockers = [o for o in fits_or_blockers if o is not None]
    if not blockers:
        return Blocker(reason="this member has no account and no open pool")
    soonest = min((o.until for o in blockers if o.until is not None), default=None)
    return Blocker(reason="; ".join(dict.fromkeys(o.reason for o in blockers)), until=soonest)


def retry_at(end: EndReason, in_a_row: int, now: float) -> float:
    """When a released job may be tried again.

    After a planned stop and after a first loss that is at once. Further losses without progress wait 1, 2, 4 ... 300 s.
    """
    if end in {EndReason.HANDED_OFF, EndReason.PAUSED}:
        return now
    free = 2 if end is EndReason.LOST else 0
    if in_a_row < free:
        return now
    return now + min(MAX_RETRY_S, 2.0 ** (in_a_row - free))


def prune(
    committed: Sequence[tuple[str, int]], head: str | None, keep: int, needed: Iterable[str | None] = ()
) -> list[str]:
    """Ids of committed checkpoints to prune: all but the newest `keep` by step, never the head or a `needed` one.

    `committed` holds `(id, step)`.
    """
    newest = sorted(committed, key=lambda c: c[1], reverse=True)
    return [ident for ident, _ in newest[keep:] if ident not in {head, *needed}]
