"""Output of commands: tables and JSON on stdout, notes on stderr, without terminal control sequences."""

from __future__ import annotations

import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_ESCAPES = re.compile(r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|\[[0-?]*[ -/]*[@-~]?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]?")
_BARS = "▁▂▃▄▅▆▇█"
_PIPE_WIDTH = 4000
"""Width of a table in a pipe. It is never wrapped, because a program reads it."""
_NAME_WIDTH = 32
"""Width of a name in a terminal. A long one would leave no room for the columns after it."""
_NAMES = frozenset({"NAME", "MEMBER", "OWNER", "ACCOUNT", "MACHINE"})
_NOTE_LENGTH = 120
"""Characters of a note in a terminal. The whole note is in a pipe, in JSON, and in `trainhop show`."""


_given: list[str] = []
"""The options of this call that select the server. They belong before each command that a hint tells to type."""


def in_hints(options: Sequence[str]) -> None:
    """Repeat these options in each hint, so that it works when it is pasted."""
    _given[:] = options


def pasteable(text: str) -> str:
    """The text, with the options of this call in its hints: commands between backticks."""
    return text.replace("`trainhop ", f"`trainhop {shlex.join(_given)} ") if _given else text


def clean(text: Any, *, one_line: bool = True) -> str:
    """Untrusted text without escape sequences, control characters and direction overrides."""
    plain = _ESCAPES.sub("", str(text)).replace("\r\n", "\n").replace("\r", "\n")
    if one_line:
        plain = " ".join(plain.split())
    return "".join(c for c in plain if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})


def say(text: str = "") -> None:
    """Print a note on stderr."""
    print(pasteable(text), file=sys.stderr, flush=True)  # noqa: T201


def put(text: str = "") -> None:
    """Print data on stdout."""
    print(text, flush=True)  # noqa: T201


def put_json(data: Any) -> None:
    """Print a JSON document on stdout."""
    put(json.dumps(data, indent=2))


def put_json_line(data: Any) -> None:
    """Print a JSON document as one line on stdout."""
    put(json.dumps(data, separators=(",", ":")))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], write: Callable[[str], None] = put) -> None:
    """Print a table on stdout, or with `write`. Cells are cleaned. None becomes a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        widest = _NAME_WIDTH if terminal and column in _NAMES else None
        grid.add_column(column, no_wrap=column != "NOTE", overflow="ellipsis", max_width=widest)
    for row in rows:
        cells = ["-" if cell is None or cell == "" else pasteable(clean(cell)) for cell in row]
        if terminal:
            cells = [_cut(cell) if column == "NOTE" else cell for column, cell in zip(columns, cells, strict=True)]
        grid.add_row(*map(Text, cells))
    console = Console(width=None if terminal else _PIPE_WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    write("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _cut(note: str) -> str:
    return note if len(note) <= _NOTE_LENGTH else note[: _NOTE_LENGTH - 1].rstrip() + "…"


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values on stdout, one pair per line. Pairs without a value are skipped."""
    shown = [(name, pasteable(clean(value))) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        put(f"{name:<{width}}  {value}")


def seconds(value: float | None) -> str:
    """A duration: `8 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if value is None:
        return "-"
    whole = max(0, round(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def moment(at: str | None) -> str:
    """A time of the server (RFC 3339) in the local time zone."""
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S}" if at else "-"


def age(at: str | None) -> float | None:
    """Seconds since a time of the server (RFC 3339)."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() if at else None


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A sparkline of `values` with at most `width` characters, newest at the right."""
    kept = [v for v in values if v == v and abs(v) != float("inf")]  # noqa: PLR0124  only NaN differs from itself
    if not kept:
        return ""
    count = min(width, len(kept))
    edges = [len(kept) * i // count for i in range(count + 1)]
    means = [sum(kept[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((m - low) * scale)] for m in means)
