"""Compares rows that are held out of training with the rows that are trained on.

The rows are validation rows, prompts or tasks in a file of their own, or those that a job's own split holds out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from worker.shared.copies_of_rows import groups
from worker.shared.counted_words import many
from worker.shared.data_check_list import LEVELS
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.copies import Copies
from worker.shared.data_checks.findings import Finding, Found, NotChecked, Report, RowsFound
from worker.shared.data_checks.leaks import PROMPTS, TASKS, VALIDATION, Leaks
from worker.shared.data_checks.number_file import NumberFile
from worker.shared.data_checks.runner import MAX_BYTES, MAX_ROWS, Data, sampled, seen_rows, stride
from worker.shared.data_checks.shift import Shift
from worker.shared.data_checks.texts import Seen
from worker.shared.dataset_files import read_rows
from worker.shared.row_split import split, split_groups
from worker.shared.rows import Row

NAMES = (VALIDATION, PROMPTS, TASKS)
TOO_LARGE = "the files are too large"


@dataclass(frozen=True, kw_only=True)
class _Counted:
    rows: int
    checked: int
    every: int


def compare(trained: Sequence[Data], held_out: Data, names: str = VALIDATION, *, max_rows: int = MAX_ROWS) -> Report:
    """What `held_out` has in common with the files that are trained on. Lines of a leak are those of `held_out`.

    `names` says what its rows are. Tasks need not be like the training rows, so no shift is looked for. Very large
    files are sampled, and `not_checked` says so. Raises `DatasetError` at the first invalid row, `OSError` on an
    unreadable file.
    """
    with NumberFile() as runs:
        copies, leaks, shift = Copies(runs), Leaks(names), Shift(names)
        at_most, rows, is_sampled = max(1, max_rows // len(trained)), 0, False
        for data in trained:
            leaks.begin_file()
            part = _add(data, at_most, rows, copies, leaks, shift)
            rows, is_sampled = rows + part.checked, is_sampled or part.every > 1
        held = _add(held_out, max_rows, rows, copies, leaks, shift, is_held_out=True)
        found = leaks.findings(copies, copies.near())
        leaked = list(sampled([each for each in found if _is_leak(each)], held_out, held.every))
        others = [each for each in found if not _is_leak(each)] + list(shift.findings())
    away = "only a sample of the training rows was compared" if is_sampled else copies.away
    asked = leaked if names == TASKS else leaked + others
    return _report([each.finding for each in asked], held, away)


def _is_leak(found: RowsFound) -> bool:
    return found.finding.check == "leak"


def _add(
    data: Data, at_most: int, first: int, copies: Copies, leaks: Leaks, shift: Shift, *, is_held_out: bool = False
) -> _Counted:
    every, checked = stride(data, at_most), 0
    for seen in seen_rows(data, every, at_most, first):
        copies.add(seen)
        leaks.add(seen, is_held_out=is_held_out)
        shift.add(seen, is_held_out=is_held_out)
        checked += 1
    return _Counted(rows=data.rows if every > 1 and data.rows else checked * every, checked=checked, every=every)


def _report(findings: Sequence[Finding], counted: _Counted, away: str) -> Report:
    return Report(
        version=VERSION,
        rows=counted.rows,
        checked=counted.checked,
        findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
        not_checked=(NotChecked(check="leak", reason=away),) if away else (),
    )


# --- the split that a job makes itself -------------------------------------------------------------------


class _AllRows:
    """The rows of some files, read again each time."""

    def __init__(self, files: Sequence[Data]) -> None:
        self._files = files

    def __len__(self) -> int:
        return sum(data.rows or 0 for data in self._files)

    def __iter__(self) -> Iterator[Row]:
        for data in self._files:
            yield from read_rows(data.path, data.row_format, data.container)


def check_split(files: Sequence[Data], eval_rows: int, seed: int, *, max_rows: int = MAX_ROWS) -> Report:
    """What the split of a job with these files mends, and what is left of it, found by the checks for other files.

    `rows` of each file must be known. `split` is a note on the copies that stay on one side. What is left is a warning,
    because its author cannot mend it. Raises as `compare` does.
    """
    rows = sum(data.rows or 0 for data in files)
    held = _Counted(rows=eval_rows, checked=0, every=1)
    if rows > max_rows or sum(data.path.stat().st_size for data in files) > MAX_BYTES:
        return _report((), held, TOO_LARGE)
    group = groups(_AllRows(files))
    trained, held_out = split_groups(group, eval_rows, seed)
    with NumberFile() as runs:
        copies, leaks, lines = Copies(runs), Leaks(), np.zeros(rows, np.int64)
        _add_chosen(files, trained, copies, leaks, lines, is_held_out=False)
        _add_chosen(files, held_out, copies, leaks, lines, is_held_out=True)
        left = [each for each in leaks.findings(copies, copies.near()) if _is_leak(each)]
    if len(files) == 1:
        left = list(sampled(left, files[0], 1))
    findings = [replace(each.finding, level="warn", advice="Remove one of each two rows.") for each in left]
    mended = _mended(group, eval_rows, seed, sum(f.count for f in findings), lines if len(files) == 1 else None)
    return _report([*findings, *mended], replace(held, checked=len(held_out)), copies.away)


def _add_chosen(
    files: Sequence[Data], chosen: np.ndarray, copies: Copies, leaks: Leaks, lines: np.ndarray, *, is_held_out: bool
) -> None:
    wanted, number = set(chosen.tolist()), 0
    for data in files:
        for seen in seen_rows(data, 1, len(lines), 0):
            lines[number] = seen.line
            if number in wanted:
                row = Seen(len(copies.lines), seen.line, seen.row)
                copies.add(row)
                leaks.add(row, is_held_out=is_held_out)
            number += 1


def _mended(group: np.ndarray, eval_rows: int, seed: int, left: int, lines: np.ndarray | None) -> tuple[Finding, ...]:
    """The note on the copies, with the validation rows that had copies in training if single rows were drawn."""
    several = np.bincount(group, minlength=len(group)) > 1
    copied = int(np.count_nonzero(several[group]))
    trained, held_out = split(len(group), eval_rows, seed)
    first = {int(group[row]): row for row in reversed(trained.tolist())}
    leaked = [row for row in held_out.tolist() if int(group[row]) in first]
    note = Found("split")
    if lines is not None:
        for row in leaked:
            note.add_row(row, int(lines[row]), int(lines[first[int(group[row])]]))
    words = (
        f"{copied} of {len(group)} rows are copies of each other, in {many(int(np.count_nonzero(several)), 'group')}, "
        f"and the split keeps each group on one side: {len(leaked)} of {eval_rows} validation rows would have a copy "
        f"among the training rows if single rows were drawn, and {left} have one now"
    )
    found = note.finding(words, total=len(group), count=copied, level="list")
    return tuple(replace(each.finding, advice="Nothing has to be done.") for each in found)
