"""Draws the sample of an audit from a data file: the order of its units, and the texts that a rater sees."""

from __future__ import annotations

import json
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.domain.audits import AuditUnit, StrataKind
from orchestrator.domain.trust.audit_sample import Unit, first_units, tercile, tercile_limits
from orchestrator.services.data_reading import is_small, within_limits
from orchestrator.services.dataset_preview import parts
from worker.shared.dataset_containers import READERS
from worker.shared.dataset_files import DatasetError, Row
from worker.shared.dataset_spec import FileFormat, RowFormat
from worker.shared.row_formats import to_row

MAX_ANSWER, MAX_BEFORE = 16_000, 16_000
"""Characters of an answer, and of all turns before it, that a rater sees."""
MAX_TURNS = 200
MAX_GROUPS = 20
"""Sources or languages with strata of their own. The others are one group."""
MAX_NAMES, MAX_NAME = 1_000, 60
OTHERS = "other"
SCRIPT_LETTERS = 200
"""Letters by which the script of an answer is known."""
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The number of units in each stratum, and the units of one part of the order, with their content."""

    strata: dict[str, int]
    units: tuple[AuditUnit, ...]


def draw(
    path: Path, sha256: str, row_format: RowFormat, container: FileFormat, *, seed: int, kind: StrataKind, places: range
) -> Drawn:
    """The units at these places of the order. Raises `DatasetError` for a file beyond the limits."""
    how: Json = {"row_format": row_format, "seed": seed, "kind": kind, "first": places.start, "end": places.stop}
    if is_small(path, container):
        found = drawn({"path": str(path), "container": container, **how})
    else:
        found = within_limits(f"{__name__}:drawn", path, container, how)
    if "fault" in found:
        raise DatasetError(found["fault"], found["line"])
    return Drawn(strata=found["strata"], units=tuple(AuditUnit(sha256=sha256, **unit) for unit in found["units"]))


def drawn(request: Json) -> Json:
    """`draw` in the process with limits."""
    path, container = Path(request["path"]), FileFormat(request["container"])
    row_format = RowFormat(request["row_format"])
    try:
        index = _indexed(_rows(path, row_format, container), StrataKind(request["kind"]))
        units = first_units(index.units(), index.sizes(), request["seed"], request["end"])[request["first"] :]
        texts = _contents(READERS[container](path), row_format, units)
    except DatasetError as error:
        return {"fault": error.message, "line": error.line}
    described = [
        {"place": request["first"] + n, "row": u.row, "turn": u.turn, "stratum": u.stratum, "content": texts[u]}
        for n, u in enumerate(units)
    ]
    return {"strata": index.sizes(), "units": described}


def _rows(path: Path, row_format: RowFormat, container: FileFormat) -> Iterator[tuple[Json, Row]]:
    for line, record in READERS[container](path):
        yield record, to_row(row_format, line, record)


@dataclass
class _Index:
    """One entry for each unit: its row, its part of the row, its group and its length."""

    rows: array[int] = field(default_factory=lambda: array("I"))
    turns: array[int] = field(default_factory=lambda: array("I"))
    groups: array[int] = field(default_factory=lambda: array("H"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    names: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, row: int, turn: int, group: str, length: int) -> None:
        if group not in self.names and len(self.names) >= MAX_NAMES:
            group = OTHERS
        self.rows.append(row)
        self.turns.append(turn)
        self.groups.append(self.names.setdefault(group, len(self.names)))
        self.lengths.append(length)

    def finish(self) -> None:
        """Find the groups with strata of their own, and the thirds by length."""
        self._limits = tercile_limits(Counter(self.lengths))
        largest = {group for group, _ in Counter(self.groups).most_common(MAX_GROUPS)}
        self._shown = {number: name if number in largest else OTHERS for name, number in self.names.items()}
        self._sizes = dict(Counter(unit.stratum for unit in self.units()))

    def units(self) -> Iterator[Unit]:
        for row, turn, group, length in zip(self.rows, self.turns, self.groups, self.lengths, strict=True):
            name = self._shown[group]
            third = tercile(length, self._limits)
            yield Unit(row, turn, f"{name}, {third}" if name else third)

    def sizes(self) -> dict[str, int]:
        return self._sizes


def _indexed(rows: Iterator[tuple[Json, Row]], kind: StrataKind) -> _Index:
    index = _Index()
    for number, (record, row) in enumerate(rows):
        if row.desirable is False:  # nobody has to find out that it is wrong
            continue
        for turn, (_, text, is_answer) in enumerate(parts(row)):
            if is_answer:
                index.add(number, turn, _group(kind, record, text), len(text))
    index.finish()
    return index


def _group(kind: StrataKind, record: Json, text: str) -> str:
    if kind is StrataKind.SOURCE:
        return _name(record.get("source")) or "no source"
    if kind is StrataKind.LANGUAGE:
        return _name(record.get("language")) or _name(record.get("lang")) or _script(text)
    return ""


def _name(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(sign if sign.isprintable() else " " for sign in value[:MAX_NAME]).strip()


def _script(text: str) -> str:
    """The commonest script among the first letters, for example latin, cyrillic or cjk."""
    scripts: Counter[str] = Counter()
    for sign in text[: 4 * SCRIPT_LETTERS]:
        if sign.isalpha():
            scripts[unicodedata.name(sign, "other").split()[0].partition("-")[0].lower()] += 1
            if scripts.total() >= SCRIPT_LETTERS:
                break
    return scripts.most_common(1)[0][0] if scripts else "no letters"


def _contents(records: Iterator[tuple[int, Json]], row_format: RowFormat, units: Sequence[Unit]) -> dict[Unit, str]:
    wanted: dict[int, list[Unit]] = {}
    for unit in units:
        wanted.setdefault(unit.row, []).append(unit)
    texts: dict[Unit, str] = {}
    for number, (line, record) in enumerate(records):
        for unit in wanted.pop(number, ()):
            texts[unit] = _content(to_row(row_format, line, record), unit.turn)
        if not wanted:
            break
    return texts


def _content(row: Row, turn: int) -> str:
    """JSON of the turns up to the answer. Of the turns before it, the last characters are kept."""
    turns = [(role, text) for role, text, _ in parts(row)][: turn + 1]
    role, answer = turns.pop()
    shown = [[role, answer[:MAX_ANSWER], max(0, len(answer) - MAX_ANSWER)]]
    left = MAX_BEFORE
    for role, text in reversed(turns[-MAX_TURNS:]):
        kept = text[-left:] if left else ""
        shown.append([role, kept, len(text) - len(kept)])
        left -= len(kept)
    return json.dumps(shown[::-1])
