"""Leaves out the rows that have no trained token within `sequence_len`.

A step of such rows would have no loss, and its update would come from the moments of the optimiser alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.shared.dataset_files import Row
from worker.training.encoding import IGNORE, Encoder
from worker.training.interface import PermanentError
from worker.training.row_faults import NOTHING_TRAINED, named


def with_trained_tokens(rows: Sequence[Row], chosen: Sequence[int], encoder: Encoder) -> list[int]:
    """The numbers in `chosen` of rows that teach something, with all their answers. A function of rows and encoder.

    Only a row whose text before the first answer is long is tokenised. Raises `PermanentError` for a row
    that cannot be encoded, or if no row is left.
    """
    kept = [n for n in chosen if not encoder.may_teach_nothing(rows[n]) or _teaches(rows[n], n + 1, encoder)]
    if not kept:
        raise PermanentError(NOTHING_TRAINED.format(encoder.sequence_len))
    return kept


def _teaches(row: Row, number: int, encoder: Encoder) -> bool:
    with named(number):
        return all(any(label != IGNORE for label in side.labels) for side in encoder.encode(row).sides)
