"""A look into a data file before anything is trained on it: rows as they will be read, faults by line, lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.dataset import DatasetError, Row, examine
from worker.protocol import FileFormat, RowFormat

ROWS_SHOWN = 5
FAULTS_SHOWN = 20
ROWS_MEASURED = 100_000
LONGEST_SHOWN = 4_000
"""Characters of one turn that are shown."""

BARS = 24
ROWS_AT_ONCE = 512

Count = Callable[[list[str]], list[int]]
"""Tokens of each of these texts."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Part of a row: who says it, what, and whether the model learns to say it; `cut` characters are not shown."""

    role: str
    text: str
    trained: bool
    cut: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Rows with `low <= tokens < high`; `over` where they are longer than what is trained on."""

    low: int
    high: int
    rows: int
    over: bool


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What is in the file. `exact` says whether tokens were counted by the model's own tokenizer or estimated."""

    type: str
    rows: int
    tokens: int
    shown: tuple[tuple[Turn, ...], ...]
    faults: tuple[tuple[int | None, str], ...]
    more_faults: int
    truncated: int
    repeated: int
    bars: tuple[Bar, ...]
    exact: bool


def estimate(texts: list[str]) -> list[int]:
    """Tokens by the rule of thumb of four bytes each."""
    return [max(1, (len(text.encode()) + 3) // 4) for text in texts]


def preview(
    path: Path,
    row_format: RowFormat,
    file_format: FileFormat | None,
    *,
    sequence_len: int,
    train_on_inputs: bool,
    count: Count | None = None,
) -> Preview:
    """Read the whole file once; lengths are those of the first `ROWS_MEASURED` rows."""
    kind, found = examine(path, row_format, file_format)
    rows, faults, more = 0, list[tuple[int | None, str]](), 0
    shown: list[tuple[Turn, ...]] = []
    seen: set[int] = set()
    lengths: list[int] = []
    batch: list[str] = []
    measure = count or estimate
    for item in found:
        if isinstance(item, DatasetError):
            more += len(faults) >= FAULTS_SHOWN
            faults += [(item.line, item.message)] if len(faults) < FAULTS_SHOWN else []
            continue
        rows += 1
        if len(shown) < ROWS_SHOWN:
            shown.append(turns(item, train_on_inputs=train_on_inputs))
        if rows <= ROWS_MEASURED:
            text = "\n".join(turn_text for _, turn_text, _ in _parts(item))
            seen.add(hash(text))
            batch.append(text)
            if len(batch) >= ROWS_AT_ONCE:
                lengths += measure(batch)
                batch = []
    lengths += measure(batch) if batch else []
    return Preview(
        type=str(kind or ""),
        rows=rows,
        tokens=round(sum(lengths) * rows / len(lengths)) if lengths else 0,
        shown=tuple(shown),
        faults=tuple(faults),
        more_faults=more,
        truncated=sum(length > sequence_len for length in lengths),
        repeated=len(lengths) - len(seen),
        bars=tuple(_bars(lengths, sequence_len)),
        exact=count is not None,
    )


def _parts(row: Row) -> Iterator[tuple[str, str, bool]]:
    """`(role, text, whether the model learns to say it)`."""
    for message in row.messages:
        yield message.role, message.content, message.role == "assistant"
    if row.prompt:
        yield "prompt", row.prompt, False
    if row.text:
        yield "completion" if row.prompt else "text", row.text, True


def turns(row: Row, *, train_on_inputs: bool) -> tuple[Turn, ...]:
    """A row as a person reads it."""
    return tuple(
        Turn(
            role=role,
            text=text[:LONGEST_SHOWN],
            trained=trained or train_on_inputs,
            cut=max(0, len(text) - LONGEST_SHOWN),
        )
        for role, text, trained in _parts(row)
    )


def _bars(lengths: list[int], sequence_len: int) -> Iterator[Bar]:
    if not lengths:
        return
    width = max(1, -(-(max(lengths) + 1) // BARS))
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    for place, rows in enumerate(counts):
        low = place * width
        yield Bar(low=low, high=low + width, rows=rows, over=low > sequence_len)
