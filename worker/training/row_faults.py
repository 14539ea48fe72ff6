"""Faults of single rows, in the same words in a session and in a preview. Needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from worker.shared.dataset_files import Row
from worker.training.encoding import Encoder, Example
from worker.training.interface import PermanentError
from worker.training.model_limits import ModelLimits

NOTHING_TRAINED = (
    "no row has a trained token within its first {} tokens; set a larger sequence_len or shorten the text before the "
    "answers"
)


@contextlib.contextmanager
def named(number: int) -> Iterator[None]:
    """Raise every fault of the block as `PermanentError` with the number of the row, which begins at 1."""
    try:
        yield
    except PermanentError as error:
        raise PermanentError(f"row {number}: {error}") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:400]
        raise PermanentError(
            f"row {number}: the tokenizer cannot read the text ({reason}); change or remove the row"
        ) from error


def checked(encoder: Encoder, limits: ModelLimits, row: Row, number: int, *, is_split: bool = False) -> Example:
    """The encoded row before it is cut off or split.

    Raises `PermanentError` if it cannot be encoded, or if what is read of it exceeds the limits of the model.
    """
    with named(number):
        full = encoder.encode_full(row)
    for part in encoder.split(full) if is_split else encoder.cut(full).sides:
        limits.check(part.input_ids, f"row {number} of the dataset")
    return full
