"""Runs all checks over a dataset: one pass over its rows, and then the comparison of their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from worker.shared.data_check_list import CHECKS, LEVELS
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.benchmark_items import BenchmarkItems
from worker.shared.data_checks.contradictions import Contradictions
from worker.shared.data_checks.copies import Copies
from worker.shared.data_checks.diversity import Diversity
from worker.shared.data_checks.duplicates import duplicates
from worker.shared.data_checks.findings import MAX_SAMPLES, Finding, NotChecked, Report, RowsFound, with_samples
from worker.shared.data_checks.languages import Languages
from worker.shared.data_checks.leaks import Leaks
from worker.shared.data_checks.lengths import Lengths
from worker.shared.data_checks.number_file import NumberFile
from worker.shared.data_checks.phrases import Refusals, own_phrases, read_phrases
from worker.shared.data_checks.private_data import PrivateData
from worker.shared.data_checks.shift import Shift
from worker.shared.data_checks.template_tokens import TemplateTokens
from worker.shared.data_checks.texts import Seen
from worker.shared.data_checks.token_facts import TokenFacts, token_findings
from worker.shared.data_checks.turns import Turns
from worker.shared.dataset_files import detect_file_format, numbered_rows
from worker.shared.dataset_spec import FileFormat, RowFormat

MAX_ROWS = 200_000
MAX_BYTES = 512 << 20
"""A file with more rows or bytes is sampled: every second row, or every third, and so on."""
NO_TOKENIZER = "no tokenizer"
NO_VALIDATION = "no validation file was given"
NO_BENCHMARK = "no benchmark was named"


class _Family(Protocol):
    def add(self, seen: Seen) -> None: ...
    def findings(self) -> tuple[RowsFound, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Data:
    """A file of rows. `container` and `rows` are found out where they are not known."""

    path: Path
    row_format: RowFormat = RowFormat.AUTO
    container: FileFormat | None = None
    rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the rows are compared with.

    `validation` are the rows of a split that a person has made. `benchmarks` are files of items by the name of the
    benchmark, `phrases` a file of more phrases, `tokens` what a process with the tokenizer has counted.
    """

    validation: Data | None = None
    benchmarks: Mapping[str, Path] = field(default_factory=dict[str, Path])
    phrases: Path | None = None
    tokens: TokenFacts = field(default_factory=lambda: TokenFacts(away=NO_TOKENIZER))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The report, and rows by their place in the file from 0.

    `named` are all rows of each check, those of `leak` in the validation file. `left_out` and `left_out_validation` are
    not in clean copies of the two files. `near` are the verified near-copies, the earlier row first.
    """

    report: Report
    named: Mapping[str, frozenset[int]]
    left_out: frozenset[int]
    left_out_validation: frozenset[int]
    near: tuple[tuple[int, int], ...] = ()
    exact: tuple[tuple[int, int], ...] = ()
    """Exact duplicates, each after the first row with the same text."""


def check(data: Data, options: Options | None = None, *, max_rows: int = MAX_ROWS) -> Outcome:
    """Check all rows of a file, or a sample of a very large one.

    Raises `DatasetError` at the first invalid row and for a bad file of phrases or items, `OSError` on an unreadable
    file.
    """
    asked = options or Options()
    with NumberFile() as runs, NumberFile() as answers:
        return _Checks(data, asked, Copies(runs), Contradictions(answers), max_rows).outcome()


class _Checks:
    def __init__(
        self, data: Data, options: Options, copies: Copies, contradictions: Contradictions, max_rows: int
    ) -> None:
        self._data, self._options, self._copies, self._max_rows = data, options, copies, max_rows
        more = read_phrases(options.phrases) if options.phrases else ()
        self._languages, self._diversity = Languages(), Diversity()
        self._leaks, self._shift = Leaks(), Shift()
        self._families: tuple[_Family, ...] = (
            BenchmarkItems(options.benchmarks),
            contradictions,
            Turns(),
            TemplateTokens(options.tokens.special),
            Refusals((*own_phrases(), *more)),
            Lengths(),
            self._languages,
            PrivateData(),
            self._diversity,
        )

    def outcome(self) -> Outcome:
        every, rows = self._read()
        validation_every = self._read_validation(rows)
        near = self._copies.near()
        found = list(duplicates(self._copies, near, rows))
        if self._options.validation is not None:
            found += self._leaks.findings(self._copies, near) + self._shift.findings()
        for family in self._families:
            found += family.findings()
        if not self._options.tokens.away:
            found += token_findings(self._options.tokens)
        leaks = [each for each in found if each.finding.check == "leak"]
        found = [
            *sampled([each for each in found if each.finding.check != "leak"], self._data, every),
            *sampled(leaks, self._options.validation, validation_every),
        ]
        found.sort(key=lambda each: LEVELS.index(each.finding.level))
        named: dict[str, frozenset[int]] = {}
        for each in found:
            first = rows if each.finding.check == "leak" else 0
            places = frozenset((n - first) * (validation_every if first else every) for n in each.rows)
            named[each.finding.check] = named.get(each.finding.check, frozenset()) | places
        removed = {number for each in found for number in each.removed}
        return Outcome(
            report=Report(
                version=VERSION,
                rows=self._data.rows if every > 1 and self._data.rows else rows * every,
                checked=rows,
                findings=tuple(each.finding for each in found),
                not_checked=tuple(self._not_checked()),
                figures=self._diversity.figures(),
            ),
            named=named,
            left_out=frozenset(number * every for number in removed if number < rows),
            left_out_validation=frozenset((n - rows) * validation_every for n in removed if n >= rows),
            near=tuple((a * every, b * every) for a, b in near if b < rows),
            exact=tuple(
                (int(a) * every, b * every) for b, a in enumerate(self._copies.exact()[:rows].tolist()) if a != b
            ),
        )

    def _read(self) -> tuple[int, int]:
        every, number = stride(self._data, self._max_rows), -1
        for seen in seen_rows(self._data, every, self._max_rows, 0):
            number = seen.number
            self._copies.add(seen)
            if self._options.validation is not None:
                self._leaks.add(seen, is_held_out=False)
                self._shift.add(seen, is_held_out=False)
            for family in self._families:
                family.add(seen)
        return every, number + 1

    def _read_validation(self, first: int) -> int:
        if self._options.validation is None:
            return 1
        every = stride(self._options.validation, self._max_rows)
        for seen in seen_rows(self._options.validation, every, self._max_rows, first):
            self._copies.add(seen)
            self._leaks.add(seen, is_held_out=True)
            self._shift.add(seen, is_held_out=True)
        return every

    def _not_checked(self) -> Iterator[NotChecked]:
        for name in CHECKS:
            if reason := self._reason(name):
                yield NotChecked(check=name, reason=reason)

    def _reason(self, name: str) -> str:
        if name in ("leak", "split", "shift"):
            return NO_VALIDATION if self._options.validation is None else ""
        reasons = {
            "near_copies": self._copies.away or ("only the most alike pairs" if self._copies.is_cut else ""),
            "benchmark_leak": "" if self._options.benchmarks else NO_BENCHMARK,
            "end_of_turn": self._options.tokens.away,
            "cut_rows": self._options.tokens.away,
            "language": self._languages.away,
        }
        return reasons.get(name, "")


def items_in(data: Data, items: BenchmarkItems, *, max_rows: int = MAX_ROWS) -> tuple[Finding, ...]:
    """The check of benchmark items alone. Raises as `check`."""
    for seen in seen_rows(data, stride(data, max_rows), max_rows, 0):
        items.add(seen)
    return tuple(each.finding for each in items.findings())


def sampled(found: list[RowsFound], data: Data | None, every: int) -> Iterator[RowsFound]:
    """The findings with samples. The first lines of those that have none are read once more."""
    wanted = {line for each in found if not each.finding.samples for line in each.finding.lines[:MAX_SAMPLES]}
    texts: dict[int, str] = {}
    if wanted and data is not None:
        for line, row in numbered_rows(data.path, data.row_format, data.container, every=every):
            if line in wanted:
                texts.setdefault(line, "\n".join(turn.said for turn in Seen(0, line, row).turns))
            if len(texts) == len(wanted):
                break
    for each in found:
        yield with_samples(each, texts)


def stride(data: Data, max_rows: int = MAX_ROWS) -> int:
    """The distance between two rows that are checked: 1 for all rows, 2 for every second one."""
    size = data.path.stat().st_size
    if size <= MAX_BYTES and (data.rows or size) <= max_rows:
        return 1
    rows = data.rows if data.rows is not None else _count(data)
    return max(1, -(-rows // max_rows), -(-size // MAX_BYTES))


def _count(data: Data) -> int:
    """Rows of a file, or more: lines of a text."""
    container = data.container or detect_file_format(data.path)
    if container is FileFormat.PARQUET:
        from pyarrow import parquet

        return parquet.read_metadata(data.path).num_rows
    lines, last = 0, b"\n"
    with data.path.open("rb") as file:
        while block := file.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block
    return lines + (not last.endswith(b"\n"))


def seen_rows(data: Data, every: int, most: int, first: int) -> Iterable[Seen]:
    """Every `every`-th row of a file, at most `most`, with numbers from `first` on."""
    rows = numbered_rows(data.path, data.row_format, data.container, every=every)
    for number, (line, row) in enumerate(rows):
        if number == most:
            return
        yield Seen(first + number, line, row)
