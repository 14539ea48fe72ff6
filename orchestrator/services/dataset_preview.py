"""Preview of a data file before training: rows as they will be read, faults by line, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.ports.catalog import ROWS_MEASURED, ROWS_SHOWN, TokenLook, TokenRow
from worker.shared.dataset_files import DatasetError, Row, examine
from worker.shared.dataset_spec import FileFormat, RowFormat, TaughtTurns
from worker.shared.job_spec import ENCODING
from worker.shared.long_texts import piece_count
from worker.shared.row_keys import UnusedKeys
from worker.shared.taught_turns import USUAL, as_taught

FAULTS_SHOWN = 20
MAX_SHOWN = 4_000
"""Characters of one turn that are shown."""

BARS = 24


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Part of a row: its role, its text, and whether the model is trained on it. `cut` characters are not shown."""

    role: str
    text: str
    trained: bool
    cut: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Rows with `low <= tokens < high`. `over` says that they are longer than the sequences in training."""

    low: int
    high: int
    rows: int
    over: bool


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Content of a file, with the lengths of its first `measured` rows.

    `exact` says whether the model's own tokenizer counted them. Otherwise the lengths are estimates. `by_token` shows
    the same rows as `shown` if the tokenizer was available. Otherwise `away` says why it was not. `refusal` is the
    error that a session with this model would fail with. `unused` are keys of rows that training does not use.
    `findings` say what the model will do differently from what the rows teach. `split` texts are longer than the
    sequences, and split into `pieces` pieces.
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
    unused: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    split: int = 0
    pieces: int = 0


def estimate(text: str) -> int:
    """Number of tokens by the rule of thumb of four bytes each."""
    return max(1, (len(text.encode()) + 3) // 4)


def preview(
    path: Path,
    row_format: RowFormat,
    file_format: FileFormat | None,
    *,
    sequence_len: int,
    train_on_inputs: bool,
    taught: TaughtTurns = USUAL,
) -> Preview:
    """Read the whole file once. Lengths are those of the first `ROWS_MEASURED` rows."""
    kind, found = examine(path, row_format, file_format)
    rows, faults, more = 0, list[tuple[int | None, str]](), 0
    shown: list[tuple[Turn, ...]] = []
    seen: set[int] = set()
    lengths: list[int] = []
    unused = UnusedKeys()
    for item in (_as_taught(each, taught) for each in found):
        if isinstance(item, DatasetError):
            more += len(faults) >= FAULTS_SHOWN
            faults += [(item.line, item.message)] if len(faults) < FAULTS_SHOWN else []
            continue
        rows += 1
        unused.add(item.unused)
        if len(shown) < ROWS_SHOWN:
            shown.append(turns(item, train_on_inputs=train_on_inputs))
        if rows <= ROWS_MEASURED:
            text = "\n".join(turn_text for _, turn_text, _ in parts(item))
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
        unused=unused.names,
    )


def _as_taught(item: Row | DatasetError, taught: TaughtTurns) -> Row | DatasetError:
    try:
        return item if isinstance(item, DatasetError) else as_taught(item, taught, ENCODING)
    except DatasetError as error:
        return error


def with_tokens(shown: Preview, look: TokenLook, sequence_len: int, *, split_texts: bool = False) -> Preview:
    """The preview with its rows by token, as far as they were tokenized. With `split_texts`, no text is cut off."""
    if look.away or not look.lengths:
        return replace(shown, away=look.away, refusal=look.fault)
    lengths = list(look.lengths)
    longer = [length for length in lengths if length > sequence_len]
    is_split = split_texts and shown.type == RowFormat.TEXT
    return replace(
        shown,
        tokens=_all_tokens(lengths, shown.rows),
        truncated=0 if is_split else len(longer),
        split=len(longer) if is_split else 0,
        pieces=sum(piece_count(length, sequence_len) for length in longer) if is_split else 0,
        bars=tuple(_bars(lengths, sequence_len)),
        measured=len(lengths),
        exact=True,
        by_token=look.shown,
        untrained=look.untrained,
        refusal=look.fault,
        findings=tuple(look.findings),
    )


def _all_tokens(lengths: list[int], rows: int) -> int:
    return round(sum(lengths) * rows / len(lengths)) if lengths else 0


def parts(row: Row) -> Iterator[tuple[str, str, bool]]:
    """`(role, text, whether the model is trained on it)` for each part. Not those of a rejected answer."""
    taught = set(row.taught)
    for place, message in enumerate(row.messages):
        yield message.role, message.said, place in taught
    if row.prompt:
        yield "prompt", row.prompt, False
    if row.text:
        yield "completion" if row.prompt else "text", row.text, True


def turns(row: Row, *, train_on_inputs: bool) -> tuple[Turn, ...]:
    """A row in the form that people read."""
    return tuple(
        Turn(
            role=role,
            text=text[:MAX_SHOWN],
            trained=trained or train_on_inputs,
            cut=max(0, len(text) - MAX_SHOWN),
        )
        for role, text, trained in (*parts(row), *_second_answer(row))
    )


def _second_answer(row: Row) -> Iterator[tuple[str, str, bool]]:
    """The rejected answer of a pair, or whether the answer is a good one."""
    if row.rejected is not None:
        yield from ((f"rejected: {role}", text, trained) for role, text, trained in parts(row.rejected) if trained)
    if row.desirable is not None:
        yield "label", str(row.desirable).lower(), False


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
