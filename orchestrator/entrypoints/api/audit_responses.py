"""API responses about audits. Shares are from 0 to 1."""

from __future__ import annotations

from orchestrator.domain.audits import StrataKind
from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.audit_estimate import Label
from orchestrator.entrypoints.api.responses import ResponseModel, Time


class Interval(ResponseModel):
    """A share with its confidence interval of 95 %. `value` is null while nothing is known."""

    value: float | None
    low: float
    high: float


class Estimate(ResponseModel):
    """The share of wrong rows among those that can be checked.

    `wrong` rests on the `decided` rows. `if_correct` and `if_wrong` are the intervals if all unsure rows were correct,
    or wrong.
    """

    wrong: Interval
    if_correct: Interval
    if_wrong: Interval
    decided: int
    unsure: int
    not_checkable: int


class Standing(ResponseModel):
    """The decision about `max_wrong`. While it is open, about `more` rows are needed (null: more than 2,000)."""

    decision: Decision
    more: int | None


class Agreement(ResponseModel):
    """Agreement on the `units` that two people labelled. `kappa` and `alpha` are null if all labels are equal."""

    units: int
    equal: int
    kappa: float | None
    alpha: float | None


class Audit(ResponseModel):
    """The audit of a dataset so far. A row of an audit is one answer with its conversation.

    `rows` is the number of rows in the dataset, `drawn` in the sample, `labelled` with a label, `mine` with one of
    yours. `words` is the result in a few words. `has_data` says whether you still have the data file.
    """

    sha256: str
    seed: int
    strata_by: StrataKind
    strata: dict[str, int]
    max_wrong: float | None
    created_at: Time
    words: str
    estimate: Estimate
    standing: Standing | None
    agreement: Agreement
    rows: int
    drawn: int
    labelled: int
    mine: int
    has_data: bool
    can_draw: bool


class Turn(ResponseModel):
    """One turn. `cut` characters of it are left out."""

    role: str
    text: str
    cut: int


class OwnLabel(ResponseModel):
    """Your label of a row."""

    label: Label
    source: str
    note: str


class AuditRow(ResponseModel):
    """A row to label: the turns up to the answer, which is the last one.

    `place` is its place in the sample (from 0), `row` its row in the file (from 1). Send `unit` with the label.
    `previous` is the place of the row that you labelled before. `label` is yours. Labels of others are not shown.
    """

    place: int
    unit: str
    row: int
    turns: list[Turn]
    label: OwnLabel | None
    previous: int | None


class NextRow(ResponseModel):
    """The next row to label. Null if every drawn row that needs a label of yours has one."""

    row: AuditRow | None


class Drawn(ResponseModel):
    """The number of rows in the sample."""

    drawn: int
