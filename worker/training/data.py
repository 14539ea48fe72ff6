"""The rows of a job as tokenised examples and batches."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from worker.shared.checkpoint_file import ROWS_DIFFER, OtherRunError
from worker.shared.counted_words import many
from worker.shared.dataset_files import DatasetError, Row, read_rows
from worker.shared.methods import format_of, refused_rows
from worker.shared.rows import EACH_TURN
from worker.shared.taught_turns import as_taught
from worker.training.encoding import IGNORE, Encoder, Example
from worker.training.interface import PermanentError
from worker.training.model_limits import ModelLimits
from worker.training.pieces import Pieces, Places
from worker.training.row_faults import NOTHING_TRAINED, checked, named
from worker.training.sampler import Share, step_samples

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Manifest

REPEATED = 16
"""Rows that are encoded twice before the first step, to find a tokenizer that draws its tokens."""
COMPARED = 64
"""Maximum rows of the next update whose tokens are compared after a restore."""


def load_rows(paths: Sequence[Path], spec: JobSpec) -> list[Row]:
    """All rows of the job's datasets in order.

    Raises `PermanentError` if a dataset is invalid or the number of rows differs from the spec.
    """
    rows: list[Row] = []
    for path, dataset in zip(paths, spec.datasets, strict=True):
        try:
            read = read_rows(path, dataset.type, dataset.file_format, all_keys=spec.encoding is not None)
            rows.extend(as_taught(row, dataset.taught, spec.encoding) for row in read)
        except DatasetError as error:
            raise PermanentError(f"dataset {dataset.path}: {error}") from error
    for row in rows:
        if words := refused_rows(spec, format_of(row)):
            raise PermanentError(words)
    if len(rows) != spec.rows:
        raise PermanentError(
            f"the datasets have {many(len(rows), 'row')}, but the job expects {spec.rows}; submit it again"
        )
    return rows


def shares_of(spec: JobSpec, chosen: Sequence[int], pieces: Pieces | None = None) -> tuple[Share, ...]:
    """What an epoch has of the rows `chosen` (ascending) of each dataset, or of their pieces.

    Empty where it has each once.
    """
    if not spec.dataset_repeats:
        return ()
    places, shares = Places(chosen, pieces), list[Share]()
    end = first = 0
    for dataset in spec.datasets:
        end += dataset.rows or 0
        rows = places.before(bisect_left(chosen, end)) - first
        shares.append(Share(first, rows, dataset.of_an_epoch(rows)))
        first += rows
    return tuple(shares)


class Rows(torch.utils.data.Dataset[Example]):
    """Map-style view of selected rows, or of their pieces, tokenised on demand and cached."""

    def __init__(
        self,
        rows: Sequence[Row],
        chosen: Sequence[int],
        encoder: Encoder,
        limits: ModelLimits | None = None,
        shares: tuple[Share, ...] = (),
        pieces: Pieces | None = None,
    ) -> None:
        self._places = Places(chosen, pieces)
        self.shares = shares
        self.epoch_rows = sum(share.drawn for share in shares) if shares else len(self._places)

        def encode(number: int, place: int) -> Example:
            example = encoder.encode(rows[number]) if pieces is None else pieces.example(number, place)
            if limits is not None:
                for side in example.sides:
                    limits.check(side.input_ids, f"row {number + 1} of the dataset")
            return example

        self._encode = lru_cache(maxsize=4096)(encode)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        return self._encode(*self._places[index])


def trained_tokens(examples: Sequence[Example]) -> int:
    """Number of labels that are trained on. The first token of a row is not, since no token predicts it."""
    return sum(label != IGNORE for example in examples for side in example.sides for label in side.labels[1:])


def rendered_sha256(rows: Sequence[Row], encoder: Encoder) -> str | None:
    """Hash of all rows as rendered, in order. None if they depend on the time of day.

    Raises `PermanentError` for a row that cannot be rendered.
    """
    if rows[0].messages and not encoder.is_repeatable:
        return None
    digest = hashlib.sha256()
    if rows[0].messages and encoder.training_template is not None:
        digest.update(encoder.training_template.encode())  # its marks decide what is trained, and are no text
    for number, row in enumerate(rows, 1):
        for side in row.sides:
            with named(number):
                text = encoder.rendered(side).encode()
            digest.update(f"{len(side.messages)} {side.given} {len(side.prompt)} {len(text)}{_asked(side)}\n".encode())
            digest.update(text)
        if row.desirable is not None:
            digest.update(f"{row.desirable}\n".encode())
    return digest.hexdigest()


def _asked(row: Row) -> str:
    """Which turns are trained on, where that does not follow from their roles. Empty in rows of older jobs."""
    usual = row.ends == EACH_TURN and all(turn.train is None for turn in row.messages)
    return "" if usual else f" {row.ends} {row.taught}"


def check_rows(
    rows: Sequence[Row],
    training: Sequence[int],
    encoder: Encoder,
    limits: ModelLimits,
    sequence_len: int,
    pieces: Pieces | None = None,
) -> None:
    """Encode every row, so that no fault of the data is found at a later step.

    `training` are the numbers of the rows that are trained on. Raises `PermanentError` for the first row that cannot be
    used, or if no row has a token to train on.
    """
    if rows[0].messages:
        encoder.refuse_chance()
    to_train, trained = set(training), False
    for number, row in enumerate(rows):
        is_split = pieces is not None and pieces.is_text(number)
        example = encoder.cut(full := checked(encoder, limits, row, number + 1, is_split=is_split))
        if number < REPEATED and full != encoder.encode_full(row):
            raise PermanentError(
                f"row {number + 1} gives other tokens each time it is tokenised, so no two sessions would train on the "
                "same rows; use a tokenizer without chance"
            )
        trained = trained or (number in to_train and trained_tokens([example]) > 0)
    if not trained:
        raise PermanentError(NOTHING_TRAINED.format(sequence_len))


def next_tokens_sha256(trained: Rows, step: int, spec: JobSpec) -> str | None:
    """Hash of the tokens and labels of the first rows of the update after `step` updates.

    None if one of them cannot be encoded, which a job of an older version finds out only when it comes to the row.
    """
    digest = hashlib.sha256()
    for place in step_samples(step, spec.global_batch_size, trained.epoch_rows, spec.seed, trained.shares)[:COMPARED]:
        try:
            example = trained[place]
        except PermanentError:
            return None
        for part in (part for side in example.sides for part in (side.input_ids, side.labels)):
            digest.update(array("q", [len(part), *part]).tobytes())
        if example.desirable is not None:
            digest.update(bytes([example.desirable]))
    return digest.hexdigest()


def check_next_tokens(trained: Rows, manifest: Manifest, spec: JobSpec) -> None:
    """Raise `OtherRunError` if the next update would train on other tokens than when the checkpoint was saved."""
    saved = manifest.next_tokens_sha256
    if saved is not None and (here := next_tokens_sha256(trained, manifest.step, spec)) != saved:
        raise OtherRunError(f"{ROWS_DIFFER} (tokens of the next update: {here!r} here, {saved!r} in the checkpoint)")


def row_crc(example: Example) -> int:
    """CRC-32 of a row's token ids."""
    crc = 0
    for side in example.sides:
        crc = zlib.crc32(array("i", side.input_ids).tobytes(), crc)
    return crc


def checksum(rows: Sequence[int]) -> int:
    """Checksum of the rows of an update in order, independent of processes and micro-batches."""
    return zlib.crc32(array("Q", rows).tobytes())


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad to the longest example.

    Returns `input_ids`, `attention_mask` and `labels`, each int64 of shape (batch, length).
    """
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for place, example in enumerate(examples):
        length = len(example.input_ids)
        ids[place, :length] = torch.tensor(example.input_ids, dtype=torch.int64)
        labels[place, :length] = torch.tensor(example.labels, dtype=torch.int64)
        mask[place, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
