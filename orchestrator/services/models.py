"""Use cases of the registry of models: add a candidate, promote it, roll back."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.choices import AGAINST
from orchestrator.domain.errors import ConflictError, ForbiddenError, NotFoundError
from orchestrator.domain.jobs import Event, Job
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.models import (
    MAX_CANDIDATES,
    MAX_MODELS,
    Candidate,
    Model,
    Move,
    MoveKind,
    refuse_unless,
    rollback_target,
)
from orchestrator.domain.trust.verdict import Verdict
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context
from orchestrator.services.verdicts import Judged, judge


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A candidate with its job's name and its verdict as of now (None: the job was deleted)."""

    candidate: Candidate
    name: str
    judged: Judged | None
    is_promoted: bool


@dataclass(frozen=True, kw_only=True)
class Look:
    """A model with its candidates (newest first) and its history (oldest first).

    `rollback_to` is the job that a rollback would promote. None means that nothing would be promoted.
    """

    model: Model
    member: str
    entries: tuple[Entry, ...]
    moves: tuple[Move, ...]
    rollback_to: str | None

    @property
    def promotion(self) -> Move | None:
        """The move by which the present candidate was promoted."""
        return self.moves[-1] if self.moves and self.model.promoted else None


def add(ctx: Context, actor: Actor, name: str, job_id: str) -> Model:
    """Add a finished job's adapter to the model of this name of the job's owner. A second time changes nothing."""
    with ctx.uow() as tx:
        return _with_candidate(ctx, tx, name, _finished(tx, actor, job_id))


def promote(
    ctx: Context, actor: Actor, name: str, job_id: str, *, force: bool = False, after: int | None = None
) -> Move:
    """Promote a job's adapter in a model, and add it there if necessary.

    `after` is the number of moves that the actor has seen. Raises `ConflictError` with the verdict's reasons unless it
    recommends the promotion, or if another move came first. `force` is for admins and is recorded.
    """
    if force and actor.role is not Role.ADMIN:
        raise ForbiddenError("Only an admin can promote an adapter against the verdict. Ask an admin.")
    with ctx.uow() as tx:
        job = _finished(tx, actor, job_id)
        seen = _moves_seen(tx.models.get(job.member_id, name), after)
    with ctx.uow() as tx:
        job = _finished(tx, actor, job_id)
        model = _with_candidate(ctx, tx, name, job)
        _refuse_late(tx, model, seen)
        verdict = judge(tx, job).verdict
        refuse_unless(verdict, forced=force)
        return _move(ctx, tx, actor, model, MoveKind.PROMOTION, job, verdict)


def rollback(ctx: Context, actor: Actor, member_id: str, name: str, *, after: int | None = None) -> Move:
    """Promote the candidate that was promoted before, or none if there was none. `after` as in `promote`."""
    with ctx.uow() as tx:
        model = _of(tx, actor, member_id, name)
        seen, target = _moves_seen(model, after), _target(tx, model)
        if model.promoted is None:
            raise ConflictError(f"Nothing is promoted in model {name}.")
    with ctx.uow() as tx:
        job = owned_job(tx, actor, target) if target is not None else None  # locked before the model, as in `promote`
        model = tx.models.get_for_update(member_id, name)
        assert model is not None
        _refuse_late(tx, model, seen)
        return _move(ctx, tx, actor, model, MoveKind.ROLLBACK, job, judge(tx, job).verdict if job else None)


def look(ctx: Context, actor: Actor, member_id: str, name: str) -> Look:
    """A model with everything that is known of it. Raises `NotFoundError` unless the actor may see it."""
    with ctx.uow() as tx:
        model = _of(tx, actor, member_id, name)
        candidates = tx.models.candidates(member_id, name)
        moves = tx.models.moves(member_id, name)
        target = _target(tx, model)
        owner = tx.members.get(member_id)
    return Look(
        model=model,
        member=owner.name if owner is not None else member_id,
        entries=tuple(_entry(ctx, model, candidate) for candidate in candidates),
        moves=tuple(moves),
        rollback_to=target,
    )


def find(ctx: Context, actor: Actor, member_id: str, name: str) -> Model:
    """A model. Raises `NotFoundError` unless the actor may see it."""
    with ctx.uow() as tx:
        return _of(tx, actor, member_id, name)


def verdict_of(ctx: Context, actor: Actor, job_id: str) -> Judged:
    """The verdict on a job's adapter. Raises `ConflictError` if the job has none."""
    with ctx.uow() as tx:
        return judge(tx, _finished(tx, actor, job_id))


def listed(ctx: Context, member_id: str | None) -> list[tuple[Model, str, Move | None]]:
    """The models of a member, or of all, with the name of their member and their last move."""
    with ctx.uow() as tx:
        found = tx.models.some(member_id, MAX_MODELS)
        owners = {one: tx.members.get(one) for one in {model.member_id for model in found}}
        moves = [tx.models.newest_move(model) for model in found]
    names = {one: owner.name if owner is not None else one for one, owner in owners.items()}
    return [(model, names[model.member_id], move) for model, move in zip(found, moves, strict=True)]


def _entry(ctx: Context, model: Model, candidate: Candidate) -> Entry:
    with ctx.uow() as tx:  # one transaction for each, so that writers need not wait for all
        job = tx.jobs.get_many([candidate.job_id])[candidate.job_id]
        judged = judge(tx, job) if job.deleted_at is None else None
    return Entry(candidate=candidate, name=job.name, judged=judged, is_promoted=model.promoted == job.id)


def _finished(tx: Transaction, actor: Actor, job_id: str) -> Job:
    """The job, locked against its deletion. Raises `ConflictError` if it has no adapter."""
    job = owned_job(tx, actor, job_id)
    if job.state is not JobState.SUCCEEDED or job.adapter_sha256 is None:
        raise ConflictError(f"Job {job_id} is {job.state.word} and has no adapter. Only a finished one has a verdict.")
    return job


def _with_candidate(ctx: Context, tx: Transaction, name: str, job: Job) -> Model:
    """The model, locked, with the job as a candidate. Both are created if necessary."""
    now = ctx.clock.now()
    if tx.models.get(job.member_id, name) is None:
        if len(tx.models.some(job.member_id, MAX_MODELS)) >= MAX_MODELS:
            raise ConflictError(f"A member has at most {MAX_MODELS} models.")
        tx.models.add(Model(member_id=job.member_id, name=name, created_at=now))
    model = tx.models.get_for_update(job.member_id, name)
    assert model is not None
    known = [one.job_id for one in tx.models.candidates(job.member_id, name)]
    if job.id in known:
        return model
    if len(known) >= MAX_CANDIDATES:
        raise ConflictError(f"Model {name} has {MAX_CANDIDATES} candidates, which is the most. Use another name.")
    tx.models.add_candidate(
        Candidate(
            member_id=job.member_id, model=name, job_id=job.id, adapter_sha256=job.adapter_sha256 or "", added_at=now
        )
    )
    return model


def _of(tx: Transaction, actor: Actor, member_id: str, name: str) -> Model:
    found = tx.models.get(member_id, name) if actor.may_see(member_id) else None
    if found is None:
        raise NotFoundError(f"There is no model {name}. List them with `trainhop models ls`.")
    return found


def _moves_seen(model: Model | None, after: int | None) -> int:
    if after is not None:
        return after
    return model.moves if model is not None else 0


def _refuse_late(tx: Transaction, model: Model, seen: int) -> None:
    if model.moves == seen:
        return
    last = tx.models.newest_move(model)
    by = f" by {last.actor}" if last is not None else ""
    raise ConflictError(
        f"Model {model.name} was changed{by} in the meantime: {model.promoted or 'nothing'} is promoted now. "
        "Look at it, and try again."
    )


def _target(tx: Transaction, model: Model) -> str | None:
    jobs = tx.jobs.get_many(one.job_id for one in tx.models.candidates(model.member_id, model.name))
    available = {job.id for job in jobs.values() if job.deleted_at is None}
    return rollback_target(tx.models.moves(model.member_id, model.name), available)


def _move(
    ctx: Context, tx: Transaction, actor: Actor, model: Model, kind: MoveKind, job: Job | None, verdict: Verdict | None
) -> Move:
    """Move `promoted` to this job, whose verdict is this one, and record it."""
    move = model.move(job.id if job else None, verdict, kind, actor=actor.name, at=ctx.clock.now())
    tx.models.save(model)
    tx.models.add_move(move)
    if job is not None:
        words = f"{kind} in model {model.name}" + (f", {AGAINST}" if move.against_verdict else "")
        told = {"model": model.name}
        # `job.note` would also change the time of the job's end.
        job.events.append(
            Event(job_id=job.id, at=move.at, kind="job.promoted", actor=actor.name, reason=words, data=told)
        )
        tx.jobs.save(job)
    return move
