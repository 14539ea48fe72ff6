"""Counts what the data checks need of a tokenizer: `python -m worker.training.token_counts`.

Reads one request as JSON from standard input and writes one reply as JSON to standard output. It is a program of its
own with limited time and memory, like `token_preview`, and does not need torch.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from worker.shared.data_checks.runner import Data, stride
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.dataset_files import numbered_rows
from worker.shared.dataset_spec import RowFormat
from worker.shared.job_spec import ENCODING
from worker.training.encoding import Encoder, load_tokenizer
from worker.training.end_counts import EndCounts
from worker.training.row_faults import named
from worker.training.token_preview import answer


@dataclass(frozen=True, kw_only=True)
class Request:
    """`tokenizer` is a folder. At most `rows` rows are encoded, evenly from the file, for `seconds`.

    `cpu_s` is the limit of CPU seconds.
    """

    tokenizer: str
    file: str
    row_format: str
    sequence_len: int
    train_on_inputs: bool
    rows: int
    seconds: float
    cpu_s: int


def count(request: Request) -> TokenFacts:
    """The counts. Raises `PermanentError` for a row that cannot be encoded."""
    tokenizer = load_tokenizer(Path(request.tokenizer), trust_remote_code=False)
    encoder = Encoder(tokenizer, request.sequence_len, request.train_on_inputs, encoding=ENCODING)
    data = Data(path=Path(request.file), row_format=RowFormat(request.row_format))
    counts, until = EndCounts(tokenizer, request.sequence_len), time.monotonic() + request.seconds
    rows = numbered_rows(data.path, data.row_format, every=stride(data, request.rows))
    for number, (line, row) in enumerate(rows):
        if number == request.rows or time.monotonic() > until:
            break
        with named(line):
            counts.add(line, row, encoder.encode_full(row).labels)
    facts = counts.facts()
    # A job splits texts, and loses nothing of them.
    return replace(facts, cut=0, cut_lines=()) if data.row_format is RowFormat.TEXT else facts


if __name__ == "__main__":
    answer(lambda asked: asdict(count(Request(**asked))))
