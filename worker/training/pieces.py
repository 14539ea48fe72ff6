"""The pieces of texts that are longer than `sequence_len`. Needs no torch."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from worker.shared.counted_words import many
from worker.shared.dataset_files import Row
from worker.shared.dataset_spec import RowFormat
from worker.shared.long_texts import MAX_PIECES, SPLIT, piece_count, piece_start
from worker.shared.methods import format_of
from worker.training.encoding import ADDED_TOKENS, IGNORE, Encoder, Example
from worker.training.interface import PermanentError
from worker.training.row_faults import named

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec

KEPT_TOKENS = 1 << 25
"""Maximum tokens of long texts that are kept in memory, in 4 bytes each. Others are tokenised again."""


def may_be_split(row: Row, kind: RowFormat) -> bool:
    """Whether a row of a dataset of this type is a plain text."""
    return kind in (RowFormat.TEXT, RowFormat.AUTO) and format_of(row) is RowFormat.TEXT


def surely_short(row: Row, length: int) -> bool:
    """Whether the text fits into one piece without a look at its tokens: none has less than a byte of ASCII."""
    return row.text.isascii() and len(row.text) + ADDED_TOKENS <= length


class Pieces:
    """The pieces of a job's rows. A row that is no text, or is not longer than `sequence_len`, has one."""

    def __init__(self, rows: Sequence[Row], spec: JobSpec, encoder: Encoder, *, kept_tokens: int = KEPT_TOKENS) -> None:
        self._rows, self._encoder, self._most = rows, encoder, kept_tokens
        self._ends = list(accumulate(dataset.rows or 0 for dataset in spec.datasets))
        self._kinds = [dataset.type for dataset in spec.datasets]
        self._counts = array("q", bytes(8 * len(rows)))
        self._kept: OrderedDict[int, array[int]] = OrderedDict()
        self._tokens = 0

    @classmethod
    def of(cls, rows: Sequence[Row], spec: JobSpec, encoder: Encoder) -> Pieces | None:
        """None for a job whose texts are cut off."""
        return cls(rows, spec, encoder) if spec.excess_length_strategy == SPLIT else None

    def is_text(self, number: int) -> bool:
        """Whether this row may have several pieces. `number` begins at 0."""
        return may_be_split(self._rows[number], self._kinds[bisect_right(self._ends, number)])

    def count(self, number: int) -> int:
        """Number of pieces of a row. Raises `PermanentError` if it cannot be tokenised."""
        if not self._counts[number]:
            length = self._encoder.sequence_len
            short = not self.is_text(number) or surely_short(self._rows[number], length)
            self._counts[number] = 1 if short else piece_count(len(self._ids(number)), length)
        return self._counts[number]

    def example(self, number: int, place: int) -> Example:
        """A piece of a row, with the tokens and labels that it is trained on."""
        if self.count(number) == 1:
            return self._encoder.encode(self._rows[number])
        start = piece_start(place, self._encoder.sequence_len)
        ids = self._ids(number)[start : start + self._encoder.sequence_len].tolist()
        return Example(ids, [IGNORE, *ids[1:]])  # all of a text is trained on

    def check(self, spec: JobSpec, training: Iterable[int], *, most: int = MAX_PIECES) -> None:
        """Raise `PermanentError` unless the rows `training` (ascending) make as many pieces as the server has counted.

        What the server could not count is not compared. No job has more than `most`.
        """
        here = [0] * len(spec.datasets)
        for number in training:
            here[bisect_right(self._ends, number)] += self.count(number)
        if sum(here) > most:
            raise PermanentError(f"the rows make more than {most:,} pieces; set a larger sequence_len")
        for dataset, found in zip(spec.datasets, here, strict=True):
            if dataset.pieces is not None and dataset.pieces != found:
                raise PermanentError(
                    f"the rows of {dataset.path} make {many(found, 'piece')} of at most {spec.sequence_len} tokens "
                    f"here, but the server has counted {dataset.pieces} with another tokenizer; submit the job again "
                    "with max_steps instead of num_epochs, or with excess_length_strategy: truncate"
                )

    def longer(self, training: Iterable[int]) -> int:
        """How many of these rows have several pieces."""
        return sum(self.count(number) > 1 for number in training)

    def _ids(self, number: int) -> array[int]:
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return kept
        with named(number + 1):
            ids = array("i", self._encoder.encode_full(self._rows[number]).input_ids)
        if len(ids) > self._encoder.sequence_len:
            self._kept[number] = ids
            self._tokens += len(ids)
        while self._tokens > self._most:
            self._tokens -= len(self._kept.popitem(last=False)[1])
        return ids


class Places:
    """The pieces of chosen rows in their order, one after another."""

    def __init__(self, chosen: Sequence[int], pieces: Pieces | None) -> None:
        self._chosen = chosen
        self._ends = None if pieces is None else array("q", accumulate(pieces.count(number) for number in chosen))

    def __len__(self) -> int:
        return len(self._chosen) if self._ends is None else self.before(len(self._chosen))

    def __getitem__(self, index: int) -> tuple[int, int]:
        """The row of this piece, and its place in the row."""
        if self._ends is None:
            return int(self._chosen[index]), 0
        row = bisect_right(self._ends, index)
        return int(self._chosen[row]), index - self.before(row)

    def before(self, row: int) -> int:
        """How many pieces the rows before the `row`-th chosen one have."""
        if self._ends is None:
            return row
        return self._ends[row - 1] if row else 0
