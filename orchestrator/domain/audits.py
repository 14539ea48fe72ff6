"""Audits: people label a random sample of a dataset's answers. An audit belongs to the bytes of the dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.choices import StrataKind, percent
from orchestrator.domain.trust.audit_decision import Decision, Standing, decide, standing
from orchestrator.domain.trust.audit_estimate import Estimate, Label, Stratum, estimate
from orchestrator.domain.trust.audit_sample import is_rated_twice

ACTIVE_S = 600.0
"""A member who labelled a row in this time gets other rows than members who label at the same time."""
LABELS = tuple(Label)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of the dataset `sha256`.

    `strata` has the number of units of each stratum. A unit is one answer of a row. `counts` has, for each stratum with
    labels, the number of units by label in the order of `LABELS`. `row_format` says how the rows are read.
    """

    sha256: str
    member_id: str
    seed: int
    strata_kind: StrataKind
    strata: dict[str, int]
    max_wrong: float | None
    row_format: str
    counts: dict[str, list[int]]
    created_at: float

    @property
    def units(self) -> int:
        """Number of units of the dataset."""
        return sum(self.strata.values())

    def estimate(self) -> Estimate:
        """The share of wrong units so far."""
        return estimate(self._strata())

    def decision(self) -> Decision | None:
        """The decision about `max_wrong`, or None without one."""
        return None if self.max_wrong is None else decide(**self._seen(), max_wrong=self.max_wrong)

    def standing(self) -> Standing | None:
        """The decision with its forecast, which takes a tenth of a second when it is new."""
        return None if self.max_wrong is None else standing(**self._seen(), max_wrong=self.max_wrong)

    def _seen(self) -> dict[str, int]:
        found = self.estimate()
        wrong = sum(stratum.wrong for stratum in self._strata())
        return {
            "wrong": wrong,
            "correct": found.decided - wrong,
            "unsure": found.unsure,
            "rows": self.units - found.not_checkable,
        }

    def _strata(self) -> list[Stratum]:
        return [
            Stratum(size=size, **dict(zip(_FIELDS, self.counts.get(name, (0, 0, 0, 0)), strict=True)))
            for name, size in self.strata.items()
        ]


_FIELDS = tuple(label.name.lower() for label in LABELS)


@dataclass(frozen=True, kw_only=True)
class AuditUnit:
    """A unit of the sample: its place in the order, its row (from 0), its part of the row, and its stratum.

    `content` is JSON: the turns up to the answer as `[role, text, characters that are left out]`. It is empty after the
    data file was deleted.
    """

    sha256: str
    place: int
    row: int
    turn: int
    stratum: str
    content: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditLabel:
    """A member's label of a unit, with a source's address and a note. `at` is the time of the member's first label."""

    sha256: str
    place: int
    member_id: str
    label: Label
    source: str
    note: str
    at: float


def settled(labels: Iterable[Label]) -> Label:
    """The label of a unit from those of all raters: that of more than half of them, else unsure."""
    found = Counter(labels)
    label, count = found.most_common(1)[0]
    return label if 2 * count > found.total() else Label.UNSURE


def count_labels(strata: Mapping[int, str], labels: Iterable[AuditLabel]) -> dict[str, list[int]]:
    """`Audit.counts` from the strata of the units by place, and all labels."""
    counts: dict[str, list[int]] = {}
    for place, given in by_place(labels).items():
        row = counts.setdefault(strata[place], [0] * len(LABELS))
        row[LABELS.index(settled(label.label for label in given))] += 1
    return counts


def by_place(labels: Iterable[AuditLabel]) -> dict[int, list[AuditLabel]]:
    """The labels of each unit."""
    found: dict[int, list[AuditLabel]] = {}
    for label in labels:
        found.setdefault(label.place, []).append(label)
    return found


def next_place(
    seed: int, units: Sequence[AuditUnit], labels: Sequence[AuditLabel], member_id: str, now: float
) -> int | None:
    """The place of the next unit that a member labels, or None if the drawn sample has none for them.

    First the units that need a second label and have one of another member. Then the first one without a label. Members
    who label at the same time take turns in the order.
    """
    given = by_place(labels)
    for unit in units:
        others = given.get(unit.place, ())
        is_second = len(others) == 1 and others[0].member_id != member_id
        if is_second and is_rated_twice(seed, unit.row, unit.turn):
            return unit.place
    free = [unit.place for unit in units if unit.place not in given]
    active = sorted({member_id} | {label.member_id for label in labels if label.at > now - ACTIVE_S})
    own = [place for place in free if place % len(active) == active.index(member_id)]
    return (own or free or [None])[0]


def in_words(audit: Audit | None) -> str:
    """An audit in a few words. A dataset of which nothing is decided is not audited."""
    found = audit.estimate() if audit is not None else None
    if audit is None or found is None or not found.decided:
        return "not audited"
    share = found.wrong
    words = f"audit: {percent(share.value)} % wrong ({percent(share.low)}–{percent(share.high)} %)"
    words += f", {found.decided} row{'' if found.decided == 1 else 's'}"
    words += f" and {found.unsure} unsure" if found.unsure else ""
    decision = audit.decision()
    if decision is None or audit.max_wrong is None:
        return words
    return f"{words}, limit {percent(audit.max_wrong)} %: {decision}"
