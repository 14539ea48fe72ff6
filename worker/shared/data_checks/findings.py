"""What the checks find: a finding, the report of all findings, and the rows that a check has named so far."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from worker.shared.data_check_list import CHECKS, LEVELS, Level
from worker.shared.data_checks.masking import masked

if TYPE_CHECKING:
    from worker.shared.data_checks.texts import Seen

MAX_LINES = 20
MAX_SAMPLES = 3
SAMPLE_CHARACTERS = 160
"""Of the text of a row that a sample shows, once it is masked."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A part of a row's text around a finding, masked."""

    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found: `count` of `total` rows (or prompts, or tokens), with the lines of the first rows.

    `other_lines` are those that the rows are copies of or contradict, one for each of `lines`, where there are some.
    """

    check: str
    level: Level
    count: int
    total: int
    share: float
    words: str
    advice: str
    lines: tuple[int, ...] = ()
    other_lines: tuple[int, ...] = ()
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NotChecked:
    """A check that could not be made, and why."""

    check: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings in a dataset. `rows` are in the file, `checked` of them were read by the checks."""

    version: int
    rows: int
    checked: int
    findings: tuple[Finding, ...]
    not_checked: tuple[NotChecked, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    """Numbers without a limit, for example the share of different words."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def joined(
        self, findings: Iterable[Finding], made: Collection[str], not_checked: Iterable[NotChecked] = ()
    ) -> Report:
        """The report with the findings of the checks `made`, and with what they could not check."""
        return replace(
            self,
            findings=tuple(sorted([*self.findings, *findings], key=lambda finding: LEVELS.index(finding.level))),
            not_checked=(*(each for each in self.not_checked if each.check not in made), *not_checked),
        )

    @staticmethod
    def of(data: dict[str, Any]) -> Report:
        """The report of its plain data."""
        findings = tuple(
            Finding(
                **found
                | {
                    "lines": tuple(found["lines"]),
                    "other_lines": tuple(found["other_lines"]),
                    "samples": tuple(Sample(**sample) for sample in found["samples"]),
                }
            )
            for found in data["findings"]
        )
        return Report(
            version=data["version"],
            rows=data["rows"],
            checked=data["checked"],
            findings=findings,
            not_checked=tuple(NotChecked(**each) for each in data["not_checked"]),
            figures=tuple((name, value) for name, value in data["figures"]),
        )


@dataclass(frozen=True, kw_only=True)
class RowsFound:
    """A finding with the numbers of all its rows, and of those that a clean copy leaves out."""

    finding: Finding
    rows: frozenset[int]
    removed: frozenset[int]


class Found:
    """Collects the rows that one check names: all their numbers, and the first lines with a sample."""

    def __init__(self, check: str) -> None:
        self.check = CHECKS[check]
        self.rows = array("Q")
        self._lines: list[int] = []
        self._others: list[int] = []
        self._samples: list[Sample] = []

    def add(self, seen: Seen, text: str = "", begin: int = 0, end: int | None = None) -> None:
        """Name a row. `text` from `begin` to `end` is what was found, and the sample shows it with what is around."""
        if self.rows and self.rows[-1] == seen.number:
            return
        if text and len(self._samples) < MAX_SAMPLES:
            self._samples.append(Sample(line=seen.line, text=excerpt(text, begin, end)))
        self.add_row(seen.number, seen.line)

    def add_row(self, number: int, line: int, other: int | None = None) -> None:
        """Name a row by its number (from 0) and its line, and the line of the row that it is compared with."""
        self.rows.append(number)
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)
            self._others += [] if other is None else [other]

    def finding(
        self,
        words: str,
        *,
        total: int,
        count: int | None = None,
        share: float | None = None,
        level: Level | None = None,
        removed: Iterable[int] | None = None,
    ) -> tuple[RowsFound, ...]:
        """The finding, or nothing if no row is named. `words` may have places for `count`, `total` and `share`.

        `removed` are the rows that a clean copy leaves out, where they are others than those that are named.
        """
        number = len(self.rows) if count is None else count
        if not number:
            return ()
        part = number / max(1, total) if share is None else share
        finding = Finding(
            check=self.check.name,
            level=level or self.check.level(part),
            count=number,
            total=total,
            share=round(part, 6),
            words=words.format(count=number, total=total, share=percent(part)),
            advice=self.check.advice,
            lines=tuple(self._lines),
            other_lines=tuple(self._others),
            samples=tuple(self._samples),
        )
        gone = (self.rows if removed is None else removed) if self.check.removes else ()
        return (RowsFound(finding=finding, rows=frozenset(self.rows), removed=frozenset(gone)),)


def with_samples(named: RowsFound, texts: Mapping[int, str]) -> RowsFound:
    """The finding with samples from the texts of its first lines, if it has none of its own."""
    finding = named.finding
    if finding.samples:
        return named
    lines = [line for line in dict.fromkeys(finding.lines) if line in texts][:MAX_SAMPLES]
    samples = tuple(Sample(line=line, text=excerpt(texts[line], 0, None)) for line in lines)
    return replace(named, finding=replace(finding, samples=samples))


def percent(share: float) -> str:
    """A share with as many digits as it needs."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 0.1 else "under 0.1 %"


def excerpt(text: str, begin: int, end: int | None) -> str:
    """The text around a finding in one line, without secrets and personal data."""
    middle_end = begin if end is None else min(end, begin + SAMPLE_CHARACTERS // 2)
    first = max(0, begin - SAMPLE_CHARACTERS // 4)
    last = min(len(text), max(middle_end, first) + SAMPLE_CHARACTERS // 2)
    # The whole text is searched, or a cut through a key would hide the key from the mask.
    around = masked(text, begin=first, length=last - first)
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in around).split())[:SAMPLE_CHARACTERS]
    return ("…" if first else "") + plain + ("…" if last < len(text) else "")
