"""The part of resolving a job file that needs no server: it pins what may not change later, and refuses what is wrong.

A server and a run without one pin the same, so that they train in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import BaseModel
from orchestrator.services.long_texts import strategy_of
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.job_spec import ENCODING, NUMERICS, VAL_SPLIT, JobSpec
from worker.shared.long_texts import TRUNCATE
from worker.shared.methods import refused_rows

NEWEST: Mapping[str, int | None] = {"encoding": ENCODING, "numerics": NUMERICS, "val_split": VAL_SPLIT}
"""How new jobs read and split their rows, and compute."""

MAX_EPOCH_ROWS = 20_000_000
"""Of a job with `repeats`. Their order is in memory."""
LAST_DEADLINE = 253_402_300_800.0
"""The start of the year 10000. Python's calendar ends there."""


def refuse_keys_of_the_server(spec: JobSpec) -> None:
    """Raise `InvalidError` for keys that only the server sets, and for a deadline that is no date."""
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


def pinned(
    spec: JobSpec,
    model: BaseModel,
    datasets: Sequence[DatasetSpec],
    now: float,
    begun: Mapping[str, Any] | None = None,
) -> JobSpec:
    """The spec with model, datasets, time and versions pinned. Raises `InvalidError` for rows that do not fit.

    `datasets` have their hashes, formats and rows. `begun` as in `job_resolution.resolve`. `fixed` pins the number of
    steps, once that of the pieces of long texts is known.
    """
    _refuse_other_rows(spec, datasets)
    rendered_at = now if spec.rendered_at is None else spec.rendered_at
    versions = NEWEST if begun is None else {name: begun.get(name) for name in NEWEST}
    known = {"base_model": model.name, "datasets": tuple(datasets), "rendered_at": float(round(rendered_at))}
    found = spec.model_copy(update={**known, **versions, "excess_length_strategy": strategy_of(spec, begun)})
    if found.train_rows < 1:
        raise InvalidError(
            "The validation split leaves no rows to train on. Choose a smaller val_set_size.",
            [("/val_set_size", "takes all rows of the dataset")],
        )
    refuse_without_validation(found)
    return found


def fixed(spec: JobSpec) -> JobSpec:
    """A pinned spec with its number of steps. Raises `InvalidError` for a schedule or repeats that do not fit."""
    _refuse_repeats(spec)
    if words := spec.schedule_fault:
        raise InvalidError(f"The schedule is too long: {words}.", [("/lr_scheduler_kwargs", words)])
    val_split = spec.val_split if spec.eval_rows else None
    return spec.model_copy(update={"max_steps": spec.total_steps, "num_epochs": None, "val_split": val_split})


def of_unused(keys: Collection[str]) -> tuple[str, ...]:
    """A note for the author of rows with such keys."""
    shown = ", ".join(" ".join(key.split()) for key in keys)
    return (f"Keys of the data that are not used in training: {shown}.",) if keys else ()


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


def for_machines(spec: JobSpec) -> JobSpec:
    """The job file without what only the server reads, because older workers refuse its keys."""
    own: dict[str, Any] = {"rendered_at": None, "evaluate": None, "hub_model_id": None, "hub_private": True}
    own["report_to"] = ()
    if spec.excess_length_strategy == TRUNCATE:  # as without the key
        own["excess_length_strategy"] = None
    own["datasets"] = tuple(each.as_read for each in spec.datasets)
    if (asked := spec.evaluation) is not None:
        files = {"prompts": asked.prompts, "tasks": asked.tasks}
        plain = {key: file.as_read for key, file in files.items() if file is not None}
        own["evaluation"] = asked.model_copy(update=plain)
    return spec.model_copy(update=own)
