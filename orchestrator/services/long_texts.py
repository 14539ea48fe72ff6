"""Decides at submission whether the long texts of a job are split, and into how many pieces.

The pieces are counted where the model's tokenizer is on this server. A job with `num_epochs` needs their number,
because its steps are fixed when it is submitted. With `max_steps` its sessions count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import Looks, PieceCount, Verdict
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied
from orchestrator.services.row_faults import verdict
from worker.shared.counted_words import many
from worker.shared.dataset_spec import RowFormat
from worker.shared.job_spec import JobSpec
from worker.shared.long_texts import SPLIT, TRUNCATE, Strategy

MAX_COUNTS = 1_000
NOT_HERE = "the model's tokenizer is not on this server"
TOO_LONG = "they could not be counted in the time and memory that a count may take"


def strategy_of(spec: JobSpec, begun: Mapping[str, Any] | None) -> Strategy | None:
    """What a job file says of long texts. One that goes on from a checkpoint says what that job has done."""
    if begun is None or spec.excess_length_strategy is not None:
        return spec.excess_length_strategy
    return begun.get("excess_length_strategy") or TRUNCATE


def split_texts(ctx: Context, spec: JobSpec, begun: Mapping[str, Any] | None = None) -> tuple[JobSpec, tuple[str, ...]]:
    """The pinned job file with the way its texts go and the number of their pieces, and what its author should know.

    `begun` as in `job_resolution.resolve`. Raises `InvalidError` for a job that asks for what cannot be done, and
    `UnavailableError` while the server is busy.
    """
    return decided(spec, begun, lambda: _counted(ctx, spec))


def decided(
    spec: JobSpec, begun: Mapping[str, Any] | None, count: Callable[[], PieceCount]
) -> tuple[JobSpec, tuple[str, ...]]:
    """The same with another way to count."""
    asked, plain = spec.excess_length_strategy, with_pieces(spec, None, ())
    if asked == TRUNCATE:
        return with_pieces(spec, TRUNCATE, ()), ()
    if not any(dataset.type is RowFormat.TEXT for dataset in spec.datasets):
        words = "excess_length_strategy: split has no effect, because no dataset has rows of the format text."
        return plain, (words,) if asked else ()
    if begun is not None:
        # The checkpoint's place in the data is one among these pieces.
        return with_pieces(spec, SPLIT, [each.get("pieces") for each in begun["datasets"]]), ()
    counted = count()
    if not counted.away:
        return (with_pieces(spec, SPLIT, counted.pieces), (_said(spec, counted),)) if counted.longer else (plain, ())
    if spec.max_steps is not None:
        words = (
            f"Texts longer than sequence_len are split. The first session counts their pieces, because {counted.away}."
        )
        return with_pieces(spec, SPLIT, ()), (words,)
    if asked:
        words = f"num_epochs needs the number of pieces of the texts, and {counted.away}; set max_steps instead"
        raise InvalidError(f"The texts cannot be split: {words}.", [("/excess_length_strategy", words)])
    steps = math.ceil(sum(counted.pieces) / spec.global_batch_size)
    about = f" An epoch of their pieces has about {many(steps, 'step')}." if steps else ""
    words = f"Texts longer than sequence_len are cut off, because {counted.away}.{about}"
    return plain, (f"{words} To train on all of them, set max_steps instead of num_epochs.",)


def with_pieces(spec: JobSpec, way: Strategy | None, pieces: Sequence[int | None]) -> JobSpec:
    """The job file with this number of pieces for each dataset. None if there is no number."""
    counts = zip_longest(spec.datasets, pieces[: len(spec.datasets)])
    datasets = tuple(dataset.model_copy(update={"pieces": count}) for dataset, count in counts)
    return spec.model_copy(update={"excess_length_strategy": way, "datasets": datasets})


def _said(spec: JobSpec, counted: PieceCount) -> str:
    pieces = sum(counted.pieces) - (counted.rows - counted.longer)
    texts = f"{many(counted.longer, 'text')} {'is' if counted.longer == 1 else 'are'}"
    epoch = with_pieces(spec, SPLIT, counted.pieces).train_rows
    return f"{texts} longer than sequence_len and split into {pieces:,} pieces. With them, an epoch has {epoch:,} rows."


def _counted(ctx: Context, spec: JobSpec) -> PieceCount:
    """The pieces of the job's training rows, from the look that was made of its rows if that has seen them all."""
    looks = ctx.looks
    if looks is None:
        return PieceCount(away=NOT_HERE)
    seen = [verdict(ctx, looks, spec, each) if each.type is RowFormat.TEXT else None for each in spec.datasets]
    if any(look.away for look in seen if look):
        return PieceCount(away=TOO_LONG if looks.has(spec.base_model) else NOT_HERE)
    if all(look.measured == each.rows for each, look in zip(spec.datasets, seen, strict=True) if look):
        longer = sum(look.longer for look in seen if look)
        if not longer or not spec.eval_rows:
            pieces = [look.pieces if look else each.rows or 0 for each, look in zip(spec.datasets, seen, strict=True)]
            return PieceCount(pieces=pieces, rows=spec.rows, longer=longer)
    counted = _counted_apart(ctx, looks, spec)
    return replace(counted, pieces=_about(spec, seen)) if counted.away else counted


def _about(spec: JobSpec, seen: Sequence[Verdict | None]) -> list[int]:
    """Pieces of an epoch if the rows that were not looked at are like the others."""
    share = (spec.rows - spec.eval_rows) / spec.rows
    pairs = zip(spec.datasets, seen, strict=True)
    each = ((data, look.pieces / max(1, look.measured) if look else 1.0) for data, look in pairs)
    return [round(pieces * data.of_an_epoch(data.rows or 0) * share) for data, pieces in each]


def _counted_apart(ctx: Context, looks: Looks, spec: JobSpec) -> PieceCount:
    files = tuple((each.sha256, each.type) for each in spec.datasets)
    chosen = (spec.val_set_size, spec.val_split, spec.seed) if spec.eval_rows else ()
    new = (spec.tokens, *spec.added_tokens_overrides.items())
    key = (spec.base_model, files, spec.sequence_len, spec.encoding, new, *chosen)
    known = ctx.piece_counts.get(key)
    if known is None:
        known = _count(ctx, looks, spec)
        ctx.piece_counts[key] = known
        if len(ctx.piece_counts) > MAX_COUNTS:
            ctx.piece_counts.pop(next(iter(ctx.piece_counts)), None)
    return known


def _count(ctx: Context, looks: Looks, spec: JobSpec) -> PieceCount:
    with ctx.uow() as tx:
        stored = [tx.datasets.get(each.sha256 or "") for each in spec.datasets]
    with ExitStack() as files:
        paths = [files.enter_context(copied(ctx, each)) for each in stored if each is not None]
        if len(paths) < len(stored):
            return PieceCount(away=TOO_LONG)
        found = looks.pieces(spec, paths)
    return PieceCount(away=TOO_LONG) if found.away else found
