"""Pins everything of a job file that may not change later, and refuses what no machine could run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.services import evaluation_prompts, start_adapters
from orchestrator.services.adapter_conflicts import refuse_other_model
from orchestrator.services.capacity import refuse_the_too_large
from orchestrator.services.context import Context
from orchestrator.services.datasets import resolve_dataset
from orchestrator.services.hub_tokens import refuse_without_write, token_of
from orchestrator.services.job_checks import names_modules, notes, refuse_what_the_model_lacks
from orchestrator.services.long_texts import split_texts, strategy_of
from orchestrator.services.row_faults import judge_rows
from orchestrator.services.template_trial import refuse_bad_template
from orchestrator.services.tracker_logins import refuse_unwritable
from worker.shared import memory_estimate
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.job_spec import ENCODING, NUMERICS, VAL_SPLIT, JobSpec
from worker.shared.memory_estimate import Need
from worker.shared.methods import refused_rows

NEWEST: Mapping[str, int | None] = {"encoding": ENCODING, "numerics": NUMERICS, "val_split": VAL_SPLIT}
"""How new jobs read and split their rows, and compute."""

MAX_EPOCH_ROWS = 20_000_000
"""Of a job with `repeats`. Their order is in memory."""
LAST_DEADLINE = 253_402_300_800.0
"""The start of the year 10000. Python's calendar ends there."""


def resolve(
    ctx: Context,
    actor: Actor,
    spec: JobSpec,
    given: Collection[str] = (),
    begun: Mapping[str, Any] | None = None,
) -> tuple[JobSpec, Need, tuple[str, ...]]:
    """The spec with everything pinned that may not change later, the memory it needs, and notes for its author.

    `given` are datasets that the actor may read without an upload, because they are those of a job of theirs.
    `begun` is the stored job file of the job from whose checkpoint this one goes on. It reads its rows and computes as
    that one does.
    """
    if spec.evaluation is not None:
        raise InvalidError(
            "An evaluation is started from a trained job. See `trainhop evaluate --help`, or evaluate that job again.",
            [("/evaluation", "is set by the server")],
        )
    if spec.export is not None:
        raise InvalidError(
            "An export is started from a trained job. See `trainhop export --help`.",
            [("/export", "is set by the server")],
        )
    if spec.chat is not None:
        raise InvalidError(
            "A chat is started from a trained job. See `trainhop chat --help`.",
            [("/chat", "is set by the server")],
        )
    if spec.deadline is not None and not 0 <= spec.deadline < LAST_DEADLINE:
        raise InvalidError("The deadline is not a valid date.", [("/deadline", "must be a time before the year 10000")])
    _refuse_the_unknown(ctx, spec)
    if spec.hub_model_id is not None:
        refuse_without_write(ctx, actor.member_id, spec.hub_model_id, "/hub_model_id")
    refuse_unwritable(ctx, actor.member_id, spec.report_to)
    token = token_of(ctx, actor.member_id)
    spec, start, said = start_adapters.resolve(ctx, actor, spec, given)
    model = ctx.catalog.model(spec.base_model, token, with_modules=names_modules(spec) or start is not None)
    if start is not None:
        refuse_other_model(spec, start, model)
    refuse_what_the_model_lacks(spec, model)
    datasets = tuple(
        resolve_dataset(ctx, actor.member_id, dataset, f"/datasets/{place}/path", given)
        for place, dataset in enumerate(spec.datasets)
    )
    _refuse_other_rows(spec, datasets)
    rendered_at = ctx.clock.now() if spec.rendered_at is None else spec.rendered_at
    versions = NEWEST if begun is None else {name: begun.get(name) for name in NEWEST}
    known = {"base_model": model.name, "datasets": datasets, "rendered_at": float(round(rendered_at))}
    pinned = spec.model_copy(update={**known, **versions, "excess_length_strategy": strategy_of(spec, begun)})
    if pinned.train_rows < 1:
        raise InvalidError(
            "The validation split leaves no rows to train on. Choose a smaller val_set_size.",
            [("/val_set_size", "takes all rows of the dataset")],
        )
    refuse_without_validation(pinned)
    asked = pinned.evaluate
    if asked is not None:
        asked = evaluation_prompts.pinned(ctx, actor.member_id, pinned, asked, pointer="/evaluate", given=given)
        pinned = pinned.model_copy(update={"evaluate": asked})
    few = evaluation_prompts.notes(pinned, asked) if asked is not None else ()
    needed = memory_estimate.need(pinned, model.shape, model.parameters)
    remedy = "choose a smaller model, adapter: qlora, or a shorter sequence_len"
    refuse_the_too_large(ctx, actor.member_id, needed, "base model", "/base_model", remedy)
    written = refuse_bad_template(pinned)
    findings = judge_rows(ctx, pinned)
    pinned, split = split_texts(ctx, pinned, begun)
    _refuse_repeats(pinned)
    if words := pinned.schedule_fault:
        raise InvalidError(f"The schedule is too long: {words}.", [("/lr_scheduler_kwargs", words)])
    val_split = pinned.val_split if pinned.eval_rows else None
    fixed = pinned.model_copy(update={"max_steps": pinned.total_steps, "num_epochs": None, "val_split": val_split})
    return fixed, needed, (*said, *notes(spec, model), *split, *written, *findings, *few)


def refuse_without_validation(spec: JobSpec) -> None:
    """Raise `InvalidError` for a job that chooses by its validation loss and has no validation rows."""
    if spec.watches_loss and not spec.eval_rows:
        words = (
            "The validation split has no rows, so there is no validation loss to choose by. Set a larger val_set_size."
        )
        raise InvalidError(words, [("/val_set_size", "gives no validation rows")])


def _refuse_repeats(spec: JobSpec) -> None:
    if spec.dataset_repeats and spec.train_rows > MAX_EPOCH_ROWS:
        words = f"make an epoch of {spec.train_rows:,} rows, and at most {MAX_EPOCH_ROWS:,} are possible"
        raise InvalidError(f"The repeats {words}.", [("/datasets", words)])


def _refuse_other_rows(spec: JobSpec, datasets: Sequence[DatasetSpec]) -> None:
    """Refuse tasks, and rows that are not for the job's training method."""
    for place, dataset in enumerate(datasets):
        if dataset.type is RowFormat.TASK:
            message = (
                "Tasks have no answers to train on. Use them with --tasks (see `trainhop evaluate --help`), or as "
                "`evaluate.tasks` of the job file."
            )
            raise InvalidError(message, [(f"/datasets/{place}/type", message)])
        if words := refused_rows(spec, dataset.type):
            raise InvalidError(f"These rows are for another method: {words}.", [(f"/datasets/{place}/type", words)])
        given = sorted(dataset.taught.model_dump())
        if given and dataset.type is RowFormat.TEXT:
            message = f"{', '.join(given)}: plain texts have no turns. Remove the keys, or use rows of conversations."
            raise InvalidError(message, [(f"/datasets/{place}/{given[0]}", message)])


def _refuse_the_unknown(ctx: Context, spec: JobSpec) -> None:
    """Refuse a job for an unknown provider, because it would wait forever."""
    known = sorted(entry.name for entry in ctx.providers.entries())
    for place, name in enumerate(spec.placement.providers):
        if name not in known:
            message = f"There is no provider {name}. Choose one of {', '.join(known)}."
            raise InvalidError(message, [(f"/placement/providers/{place}", message)])
