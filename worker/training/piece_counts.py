"""Counts the pieces of a job's texts: `python -m worker.training.piece_counts`.

Reads one request as JSON from standard input and writes one reply as JSON to standard output. It is a program of its
own with limited time and memory, like `token_preview`, and does not need torch. Rows are read one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.shared.copies_of_rows import split_rows
from worker.shared.dataset_files import Row, read_rows
from worker.shared.job_spec import JobSpec
from worker.shared.long_texts import piece_count
from worker.training import new_tokens
from worker.training.encoding import Encoder, load_tokenizer
from worker.training.pieces import may_be_split, surely_short
from worker.training.row_faults import named
from worker.training.token_preview import answer


@dataclass(frozen=True, kw_only=True)
class Request:
    """`tokenizer` is a folder, `files` are those of the datasets of `spec`. `cpu_s` is the limit of CPU seconds."""

    tokenizer: str
    files: Sequence[str]
    spec: dict[str, Any]
    cpu_s: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """`pieces` of the training rows of each dataset. `rows` are training rows, `longer` those with several pieces."""

    pieces: Sequence[int]
    rows: int
    longer: int


class _AllRows:
    """The rows of all datasets, read again each time."""

    def __init__(self, request: Request, spec: JobSpec) -> None:
        self._files = [Path(file) for file in request.files]
        self._spec = spec

    def __len__(self) -> int:
        return self._spec.rows

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.placed())

    def placed(self) -> Iterator[tuple[int, Row]]:
        """Each row with the place of its dataset."""
        for place, (path, dataset) in enumerate(zip(self._files, self._spec.datasets, strict=True)):
            for row in read_rows(path, dataset.type, dataset.file_format):
                yield place, row


def count(request: Request) -> Counted:
    """The counts. Raises `DatasetError` or `PermanentError` for a row that cannot be read."""
    spec = JobSpec.model_validate(request.spec)
    tokenizer = load_tokenizer(Path(request.tokenizer), trust_remote_code=False)
    new_tokens.add_to(tokenizer, spec.tokens, spec.added_tokens_overrides)
    encoder = Encoder(tokenizer, spec.sequence_len, spec.train_on_inputs, encoding=spec.encoding)
    rows = _AllRows(request, spec)
    trained = iter(split_rows(rows, spec)[0].tolist())
    wanted, found, longer, chosen = next(trained, None), [0] * len(spec.datasets), 0, 0
    for number, (place, row) in enumerate(rows.placed()):
        if number != wanted:
            continue
        with named(number + 1):
            pieces = _of(row, encoder) if may_be_split(row, spec.datasets[place].type) else 1
        found[place], longer, chosen = found[place] + pieces, longer + (pieces > 1), chosen + 1
        wanted = next(trained, None)
    return Counted(pieces=found, rows=chosen, longer=longer)


def _of(row: Row, encoder: Encoder) -> int:
    if surely_short(row, encoder.sequence_len):
        return 1
    return piece_count(len(encoder.encode_full(row).input_ids), encoder.sequence_len)


if __name__ == "__main__":
    answer(lambda asked: asdict(count(Request(**asked))))
