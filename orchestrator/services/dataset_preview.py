"""A look into a data file before anything is trained on it: rows as they will be read, faults by line, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.ports.providers import ROWS_MEASURED, ROWS_SHOWN, TokenLook, TokenRow
from worker.shared.dataset_files import DatasetError, Row, examine
from worker.shared.messages import FileFormat, RowFormat

FAULTS_SHOWN = 20
MAX_SHOWN = 4_000
"""Characters of one turn that are shown."""

BARS = 24


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
    """What is in the file. `exact` says whether `measured` rows were counted by the model's own tokenizer or estimated.

    `by_token` shows the same rows as `shown` where the tokenizer was at hand; otherwise `away` says why it was not.
    `refusal` is what a session with this model would fail with.
    """

    type: str
    rows: int
    tokens: int
    shown: tuple[tuple[Turn, ...], ...]
    faults: tuple[tuple[int | None, str], ...]
    more_faults: int
    truncated: int
    repeated: int
    bars: tuple[Bar, ...]
    measured: int
    exact: bool = False
    by_token: tuple[TokenRow, ...] = ()
    untrained: int = 0
    refusal: str = ""
    away: str = ""


def estimate(text: str) -> int:
    """Tokens by the rule of thumb of four bytes each."""
    return max(1, (len(text.encode()) + 3) // 4)


def preview(
    path: Path,
    row_format: RowFormat,
    file_format: FileFormat | None,
    *,
    sequence_len: int,
    train_on_inputs: bool,
) -> Preview:
    """Read the whole file once; lengths are those of the first `ROWS_MEASURED` rows."""
    kind, found = examine(path, row_format, file_format)
    rows, faults, more = 0, list[tuple[int | None, str]](), 0
    shown: list[tuple[Turn, ...]] = []
    seen: set[int] = set()
    lengths: list[int] = []
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
            lengths.append(estimate(text))
    return Preview(
        type=str(kind or ""),
        rows=rows,
        tokens=_all_tokens(lengths, rows),
        shown=tuple(shown),
        faults=tuple(faults),
        more_faults=more,
        truncated=sum(length > sequence_len for length in lengths),
        repeated=len(lengths) - len(seen),
        bars=tuple(_bars(lengths, sequence_len)),
        measured=len(lengths),
    )


def with_tokens(found: Preview, look: TokenLook, sequence_len: int) -> Preview:
    """The preview by token, as far as the look went."""
    if look.away or not look.lengths:
        return replace(found, away=look.away, refusal=look.fault)
    lengths = list(look.lengths)
    return replace(
        found,
        tokens=_all_tokens(lengths, found.rows),
        truncated=sum(length > sequence_len for length in lengths),
        bars=tuple(_bars(lengths, sequence_len)),
        measured=len(lengths),
        exact=True,
        by_token=look.shown,
        untrained=look.untrained,
        refusal=look.fault,
    )


def _all_tokens(lengths: list[int], rows: int) -> int:
    return round(sum(lengths) * rows / len(lengths)) if lengths else 0


def _parts(row: Row) -> Iterator[tuple[str, str, bool]]:
    """`(role, text, whether the model learns to say it)`."""
    for place, message in enumerate(row.messages):
        yield message.role, message.content, message.role == "assistant" and place >= row.given
    if row.prompt:
        yield "prompt", row.prompt, False
    if row.text:
        yield "completion" if row.prompt else "text", row.text, True


def turns(row: Row, *, train_on_inputs: bool) -> tuple[Turn, ...]:
    """A row as a person reads it."""
    return tuple(
        Turn(
            role=role,
            text=text[:MAX_SHOWN],
            trained=trained or train_on_inputs,
            cut=max(0, len(text) - MAX_SHOWN),
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
