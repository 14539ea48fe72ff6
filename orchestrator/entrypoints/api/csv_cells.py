"""CSV files for people, who open them in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def text_cell(text: str) -> str:
    """Somebody's words as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r") else text


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file with a line of column names. Texts are safe in a spreadsheet."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([text_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return file.getvalue()
