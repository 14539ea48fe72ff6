"""A job made of another one: anew from the start, or from one of its checkpoints.

A clone from a checkpoint is a job of its own that begins with everything the checkpoint holds. With an unchanged file it
ends in the very bytes of the original. Keys of `worker.shared.lineage.FROM_HERE_ON` and those that no checkpoint depends on (name,
placement, deadline, eval and sample settings, ...) may change; all others are refused.
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Checkpoint, Event, Job
from orchestrator.ports.providers import Context
from orchestrator.ports.repository import Transaction
from orchestrator.services.jobs import Actor, owned, prepare, queue
from worker.shared.lineage import FROM_HERE_ON
from worker.shared.messages import JobSpec, Recipe

_ADAPTER = "the checkpoint's adapter was made with it"
_ORDER = "it decides which rows come at which step, and the checkpoint's place among them would be another"
_READING = "it decides what a row is to the model, and the steps up to the checkpoint have read it otherwise"
_REASONS = {
    "dataset_sha256": _ORDER,
    "train_rows": _ORDER,
    "global_batch_size": _ORDER,
    "seed": _ORDER,
    "val_set_size": _ORDER,
    "sequence_len": _READING,
    "train_on_inputs": _READING,
    "optimizer": "the checkpoint holds the moments of the other one",
    "base_model": "the checkpoint's adapter belongs to it",
}
_NESTED = frozenset({"checkpoint", "placement"})
_POINTERS = {"dataset_sha256": "/datasets", "train_rows": "/datasets"}


def clone(
    ctx: Context,
    actor: Actor,
    job_id: str,
    changes: dict[str, Any],
    *,
    checkpoint: str | None = None,
    key: str | None = None,
) -> Job:
    """Submit the same job with some keys of its file changed: anew, or from a checkpoint of it, named by its sha256."""
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
    if "num_epochs" in changes:
        changes = {"max_steps": None} | changes
    spec = JobSpec.model_validate(_merged(json.loads(json.dumps(job.spec)), changes))
    return submit_clone(ctx, actor, spec, job_id, checkpoint=checkpoint, key=key)


def _merged(spec: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings key by key; in them null stands for the default, and so it does in their place."""
    merged = spec | changes
    for name in _NESTED & changes.keys():
        if changes[name] is None:
            del merged[name]
        elif isinstance(changes[name], dict):
            known = spec.get(name, {})
            merged[name] = {k: v for k, v in (known | changes[name]).items() if v is not None or k not in known}
    return merged


def submit_clone(
    ctx: Context, actor: Actor, spec: JobSpec, job_id: str, *, checkpoint: str | None = None, key: str | None = None
) -> Job:
    """Queue `spec` as a clone of a job that the actor may see."""
    with ctx.uow() as tx:
        owned(tx, actor, job_id)
    ready = prepare(ctx, actor, spec, key=key, of=f"{job_id} {checkpoint}")
    if isinstance(ready, Job):
        return ready
    with ctx.uow() as tx:
        origin = owned(tx, actor, job_id)  # locked: it cannot prune what is about to be counted on
        begin = kept(tx, origin, checkpoint) if checkpoint else None
        if begin is not None:
            check_changes(ready.spec, begin, origin)
        job = queue(ctx, tx, actor, ready, cloned_from=origin.id, begin=begin)
        _note(origin, job, actor)
        tx.save_job(origin)
    ctx.wake()
    return job


def _note(origin: Job, job: Job, actor: Actor) -> None:
    """In the original's events, but no change of the original."""
    data = {"job": job.id, "from_step": job.first_step}
    origin.events.append(Event(job_id=origin.id, at=job.created_at, kind="job.cloned", actor=actor.name, data=data))


def kept(tx: Transaction, job: Job, sha256: str) -> Checkpoint:
    """A checkpoint whose file is there; raises `NotFoundError` or `ConflictError` naming those that are."""
    found = tx.checkpoint(job.id, sha256)
    if found is None:
        raise NotFoundError(f"job {job.id} has no checkpoint {sha256[:12]}")
    if found.state is not CheckpointState.COMMITTED:
        there = ", ".join(str(c.step) for c in tx.checkpoints(job.id, CheckpointState.COMMITTED))
        raise ConflictError(
            f"the checkpoint of step {found.step} is {found.state}: its file is not kept; "
            + (f"those of steps {there} are" if there else "this job has none that is")
        )
    return found


def check_changes(spec: JobSpec, begin: Checkpoint, origin: Job) -> None:
    """Raise `InvalidError` with a pointer and the reason for every change under which the checkpoint means nothing."""
    recipe = Recipe.of(spec)
    faults = [
        (
            _POINTERS.get(name, f"/{name}"),
            f"{mine!r} here, {theirs!r} in the checkpoint: {_REASONS.get(name, _ADAPTER)}",
        )
        for name, mine, theirs in recipe.differences(Recipe.model_validate(begin.manifest["recipe"]))
        if name not in FROM_HERE_ON
    ]
    faults += [
        (f"/datasets/{place}/type", f"'{mine.type}' here, '{theirs['type']}' in the original: {_READING}")
        for place, (mine, theirs) in enumerate(zip(spec.datasets, origin.spec["datasets"], strict=False))
        if mine.type != theirs["type"]
    ]
    if recipe.max_steps < begin.step:
        faults.append(("/max_steps", f"the checkpoint has {begin.step} steps behind it already"))
    if faults:
        raise InvalidError(f"a clone that is changed so cannot begin with the checkpoint of step {begin.step}", faults)
