"""Create a job from another one: from the start, or from one of its checkpoints.

A clone from a checkpoint is a separate job that begins with everything the checkpoint holds. With an unchanged job file
it ends in exactly the bytes of the original. Keys of `worker.shared.lineage.FROM_HERE_ON` and those that no checkpoint
depends on (name, placement, deadline, eval and sample settings, ...) may change. All others are refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, InvalidError, KeyTakenError, NotFoundError
from orchestrator.domain.jobs import Checkpoint, Event, Job
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context
from orchestrator.services.jobs import Ready, job_of_winner, prepare, queue
from worker.shared.job_spec import JobSpec
from worker.shared.lineage import FROM_HERE_ON
from worker.shared.manifest import Recipe

_ADAPTER = "the checkpoint's adapter depends on it"
_ORDER = "it changes the order of rows, so the checkpoint's position would be wrong"
_READING = "it changes how rows are read, and earlier steps have read them differently"
_REASONS = {
    "dataset_sha256": _ORDER,
    "train_rows": _ORDER,
    "dataset_repeats": _ORDER,
    "global_batch_size": _ORDER,
    "seed": _ORDER,
    "val_set_size": _ORDER,
    "sequence_len": _READING,
    "train_on_inputs": _READING,
    "encoding": _READING,
    "roles_to_train": _READING,
    "mask_history": _READING,
    "train_on_eos": _READING,
    "chat_template_sha256": _READING,
    "val_split": _ORDER,
    "excess_length_strategy": _ORDER,
    "optimizer": "the checkpoint has the state of the other optimizer",
    "base_model": "the checkpoint's adapter belongs to it",
}
MAX_NAME = 180
"""Characters of the original's name that the clone's has. A name may have 200."""
_NESTED = frozenset({"checkpoint", "placement", "evaluate"})
_OF_DATASETS = ("dataset_sha256", "train_rows", "dataset_repeats", "roles_to_train", "mask_history", "train_on_eos")
_POINTERS: dict[str, str] = {
    **dict.fromkeys(_OF_DATASETS, "/datasets"),
    "chat_template_sha256": "/chat_template",
    "lora_model_sha256": "/lora_model_dir",
}


def clone(
    ctx: Context,
    actor: Actor,
    job_id: str,
    changes: dict[str, Any],
    *,
    checkpoint: str | None = None,
    key: str | None = None,
) -> Job:
    """Submit the job again with some keys of its file changed.

    The clone begins at the start, or at the checkpoint with this sha256.
    """
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
    if "num_epochs" in changes:
        changes = {"max_steps": None} | changes
    spec = JobSpec.model_validate(_merged(json.loads(json.dumps(job.spec)), changes))
    return submit_clone(ctx, actor, spec, job_id, checkpoint=checkpoint, key=key)


def _merged(spec: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The spec with the changes. Nested mappings are merged key by key.

    A null restores the default, for a key of a nested mapping and for the whole mapping.
    """
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
    """Queue `spec` as a clone of a job that the actor may see.

    If it has the original's name, it gets one of its own. Chat templates see the same time as in that job, so that the
    two differ only in what was changed.
    """
    with ctx.uow() as tx:
        original = owned_job(tx, actor, job_id)
    if spec.rendered_at is None:
        spec = spec.model_copy(update={"rendered_at": original.spec.get("rendered_at")})
    ready = prepare(
        ctx,
        actor,
        spec,
        key=key,
        of=f"{job_id} {checkpoint}",
        given=datasets_of(original),
        begun=original.spec if checkpoint else None,
    )
    if isinstance(ready, Job):
        return ready
    try:
        with ctx.uow() as tx:
            origin = owned_job(tx, actor, job_id)  # locked: it cannot prune the checkpoint that the clone needs

            begin = kept(tx, origin, checkpoint) if checkpoint else None
            if begin is not None:
                check_changes(ready.spec, begin, origin)
            if ready.spec.name == origin.name:
                ready = _renamed(ready, origin.name, tx.jobs.clone_names(origin.id))
            job = queue(ctx, tx, actor, ready, cloned_from=origin.id, begin=begin)
            _note(origin, job, actor)
            tx.jobs.save(origin)
    except KeyTakenError:
        return job_of_winner(ctx, actor, ready)
    ctx.wake()
    return job


def _renamed(ready: Ready, name: str, taken: set[str]) -> Ready:
    """The job with a name of its own: that of the original with "clone", and a number from the second one on."""
    names = (f"{name[:MAX_NAME]} clone{f' {n}' if n > 1 else ''}" for n in count(1))
    spec = ready.spec.model_copy(update={"name": next(each for each in names if each not in taken)})
    return replace(ready, spec=spec, as_json=spec.model_dump(mode="json"))


def datasets_of(origin: Job) -> frozenset[str]:
    """What a clone may read even if its owner has no upload of the file: what the original reads."""
    own: list[dict[str, Any]] = list(origin.spec["datasets"])
    asked: dict[str, Any] = origin.spec.get("evaluate") or {}
    own += [asked[key] for key in ("prompts", "tasks") if asked.get(key)]
    own += asked.get("benchmarks") or ()
    start: list[dict[str, Any]] = [origin.spec["lora_model"]] if origin.spec.get("lora_model") else []
    return frozenset(file["sha256"] for file in own + start)


def _note(origin: Job, job: Job, actor: Actor) -> None:
    """Add an event to the original job. The job itself does not change."""
    data = {"job": job.id, "from_step": job.first_step}
    origin.events.append(Event(job_id=origin.id, at=job.created_at, kind="job.cloned", actor=actor.name, data=data))


def kept(tx: Transaction, job: Job, sha256: str) -> Checkpoint:
    """A checkpoint that is still stored. Raises `NotFoundError`, or `ConflictError` that names those that are."""
    checkpoint = tx.checkpoints.get(job.id, sha256)
    if checkpoint is None:
        raise NotFoundError(f"Job {job.id} has no checkpoint {sha256[:12]}.")
    if checkpoint.state is not CheckpointState.COMMITTED:
        kept_steps = ", ".join(str(c.step) for c in tx.checkpoints.of_job(job.id, CheckpointState.COMMITTED))
        raise ConflictError(
            f"The checkpoint of step {checkpoint.step} is {checkpoint.state} and has no file. "
            + (f"Available steps: {kept_steps}." if kept_steps else "This job has no checkpoint files.")
        )
    return checkpoint


def check_changes(spec: JobSpec, begin: Checkpoint, origin: Job) -> None:
    """Raise `InvalidError` with a pointer and the reason for every change with which the checkpoint cannot be used."""
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
    before = origin.spec.get("rendered_at")
    if before is not None and spec.rendered_at != before:
        faults.append(("/rendered_at", f"{spec.rendered_at!r} here, {before!r} in the original: {_READING}"))
    if recipe.max_steps < begin.step:
        faults.append(("/max_steps", f"must be greater than the checkpoint's step, {begin.step}"))
    if faults:
        raise InvalidError(
            f"With these changes, the job cannot start from the checkpoint of step {begin.step}. Undo them.", faults
        )
