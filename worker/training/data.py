"""The rows of a job as examples and batches."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from worker.shared.dataset_files import DatasetError, Row, read_rows
from worker.training.encoding import IGNORE, Encoder, Example
from worker.training.interface import PermanentError
from worker.training.model_limits import Room

if TYPE_CHECKING:
    from worker.shared.messages import JobSpec


def load_rows(paths: Sequence[Path], spec: JobSpec) -> list[Row]:
    """All rows of the job's datasets in order. Raises `PermanentError` if one is faulty or the count is not the spec's."""
    rows: list[Row] = []
    for path, dataset in zip(paths, spec.datasets, strict=True):
        try:
            rows.extend(read_rows(path, dataset.type, dataset.file_format))
        except DatasetError as error:
            raise PermanentError(f"dataset {dataset.path}: {error}") from error
    if len(rows) != spec.rows:
        raise PermanentError(
            f"the datasets have {len(rows)} rows but the job was made for {spec.rows}; submit it again"
        )
    return rows


class Rows(torch.utils.data.Dataset[Example]):
    """Map-style view of some rows, tokenised when asked for and remembered for a while."""

    def __init__(self, rows: Sequence[Row], chosen: Sequence[int], encoder: Encoder, room: Room | None = None) -> None:
        self._rows, self._chosen = rows, chosen

        def encode(number: int) -> Example:
            example = encoder.encode(rows[number])
            if room:
                room.check(example.input_ids, f"row {number + 1} of the dataset")
            return example

        self._encode = lru_cache(maxsize=4096)(encode)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        return self._encode(int(self._chosen[index]))


def trained_tokens(examples: Sequence[Example]) -> int:
    """Labels of `examples` that are trained on; the first of a row never is, since nothing predicts it."""
    return sum(label != IGNORE for example in examples for label in example.labels[1:])


def check_rows(rows: Sequence[Row], trained: Rows, encoder: Encoder, sequence_len: int) -> None:
    """Raise `PermanentError` before the first step for a row that no step could use, or if there is nothing to learn."""
    for number, row in enumerate(rows, 1):
        try:
            encoder.render(row)
        except PermanentError as error:
            raise PermanentError(f"row {number}: {error}") from error
    if not any(trained_tokens([trained[number]]) for number in range(len(trained))):
        raise PermanentError(
            f"no row has anything to learn within its first {sequence_len} tokens; set a larger sequence_len or shorten "
            "what comes before the answers"
        )


def row_crc(example: Example) -> int:
    """CRC-32 of a row's token ids."""
    return zlib.crc32(array("i", example.input_ids).tobytes())


def checksum(rows: Sequence[int]) -> int:
    """One number for the rows of an update in their order, however they were cut into processes and micro-batches."""
    return zlib.crc32(array("Q", rows).tobytes())


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad to the longest example: `input_ids`, `attention_mask`, `labels`, each int64 of shape (batch, length)."""
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
