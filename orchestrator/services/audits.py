"""Audits of datasets: drawing the sample, and what is known so far.

The audit of a dataset belongs to its bytes. All members who uploaded them share it. Whoever has labelled rows can read
the result also after the file was deleted. Nothing of the rows is logged.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.audits import Audit, AuditLabel, StrataKind, by_place, in_words
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.storage import Dataset
from orchestrator.domain.trust.agreement import cohen_kappa, krippendorff_alpha
from orchestrator.domain.trust.audit_decision import Standing
from orchestrator.domain.trust.audit_estimate import Estimate
from orchestrator.ports.repository import Transaction
from orchestrator.services.audit_reading import Drawn, draw
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied, dataset_by_id
from worker.shared.dataset_files import DatasetError
from worker.shared.dataset_spec import FileFormat, RowFormat

BATCH = 400
"""Units that are drawn at once."""
MAX_UNITS = 4_000
MAX_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two raters on the units that both labelled. None if there is no variation to measure it by."""

    units: int
    equal: int
    kappa: float | None
    alpha: float | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """An audit so far. `labelled` of the `drawn` units have a label, `mine` have one of the actor's.

    `has_data` says whether the actor still has the data file.
    """

    audit: Audit
    words: str
    estimate: Estimate
    standing: Standing | None
    agreement: Agreement
    drawn: int
    labelled: int
    mine: int
    has_data: bool

    @property
    def can_draw(self) -> bool:
        """Whether more units can be drawn."""
        return self.has_data and self.drawn < min(MAX_UNITS, self.audit.units)


def start(
    ctx: Context,
    actor: Actor,
    sha256: str,
    *,
    seed: int | None = None,
    strata: StrataKind = StrataKind.LENGTH,
    max_wrong: float | None = None,
) -> Audit:
    """Draw the sample of a dataset that the actor uploaded.

    A dataset has one audit with one seed, so that a sample cannot be chosen by what is in it. Its other settings can be
    changed until the first label. Raises `ConflictError` for a change that is too late.
    """
    dataset = dataset_by_id(ctx, actor, sha256)
    with ctx.uow() as tx:
        known = tx.audits.get(sha256)
    fixed = _seed(known, seed)
    if known is not None and (known.strata_kind, known.max_wrong) == (strata, max_wrong):
        return known
    drawn = drawn_from(ctx, dataset, RowFormat(dataset.row_format), fixed, strata, range(BATCH))
    audit = Audit(
        sha256=sha256,
        member_id=actor.member_id,
        seed=fixed,
        strata_kind=strata,
        strata=drawn.strata,
        max_wrong=max_wrong,
        row_format=dataset.row_format,
        counts={},
        created_at=ctx.clock.now(),
    )
    with ctx.uow() as tx:
        require_data(tx, sha256, actor)
        current = tx.audits.get_for_update(sha256)
        if current is not None:
            _seed(current, fixed)
            _refuse_if_labelled(tx, current)
            tx.audits.delete(sha256)
        if not tx.audits.add(audit):
            raise ConflictError("Another member has just started an audit of this dataset. Open it to continue.")
        tx.audits.put_units(drawn.units)
    return audit


def _seed(known: Audit | None, seed: int | None) -> int:
    if known is None:
        return secrets.randbelow(2**31) if seed is None else seed
    if seed not in (None, known.seed):
        raise ConflictError(f"This dataset has an audit with the seed {known.seed}, which cannot be changed.")
    return known.seed


def _refuse_if_labelled(tx: Transaction, audit: Audit) -> None:
    if labelled := len(tx.audits.labels(audit.sha256)):
        raise ConflictError(
            f"This dataset has an audit with {labelled} label{'' if labelled == 1 else 's'}. Its settings are fixed "
            "since the first one. Continue it, or export it."
        )


def drawn_from(
    ctx: Context, dataset: Dataset, row_format: RowFormat, seed: int, kind: StrataKind, places: range
) -> Drawn:
    """Units of a stored data file at these places of the order. Raises `InvalidError` if it cannot be audited."""
    with copied(ctx, dataset) as path:
        try:
            container = FileFormat(dataset.file_format)
            return draw(path, dataset.sha256, row_format, container, seed=seed, kind=kind, places=places)
        except DatasetError as error:
            raise InvalidError(f"The dataset cannot be audited: {error}.") from error


def require_data(tx: Transaction, sha256: str, actor: Actor) -> Dataset:
    """The dataset, locked against its deletion. Raises `ConflictError` if its file was deleted in the meantime."""
    _readable(tx, actor, sha256)
    dataset = tx.datasets.get_for_share(sha256)
    if dataset is None or tx.datasets.get_of(sha256, actor.member_id) is None:
        raise ConflictError(
            "The data file of this audit was deleted. Its labels are kept. Upload the same file again to continue."
        )
    return dataset


def _readable(tx: Transaction, actor: Actor, sha256: str) -> None:
    """Raise `NotFoundError` unless the actor uploaded the dataset, or started its audit or labelled in it."""
    if tx.datasets.get_of(sha256, actor.member_id) is not None:
        return
    audit = tx.audits.get(sha256)
    if audit is None or actor.member_id not in {audit.member_id, *(e.member_id for e in tx.audits.labels(sha256))}:
        raise NotFoundError(f"There is no dataset {sha256}. List them with `trainhop datasets ls`.")


def audit_of(tx: Transaction, actor: Actor, sha256: str, *, lock: bool = False) -> Audit:
    """The audit of a dataset, if the actor may see it. Raises `NotFoundError` otherwise."""
    _readable(tx, actor, sha256)
    audit = tx.audits.get_for_update(sha256) if lock else tx.audits.get(sha256)
    if audit is None:
        raise NotFoundError(
            f"This dataset is not audited. Start an audit with `trainhop datasets audit start {sha256}`."
        )
    return audit


def status(ctx: Context, actor: Actor, sha256: str) -> Status:
    """What is known so far. Raises `NotFoundError` for a dataset without an audit."""
    with ctx.uow() as tx:
        audit = audit_of(tx, actor, sha256)
        labels = tx.audits.labels(sha256)
        drawn = tx.audits.count_units(sha256)
        has_data = tx.datasets.get_of(sha256, actor.member_id) is not None
    given = by_place(labels)
    return Status(
        audit=audit,
        words=in_words(audit),
        estimate=audit.estimate(),
        standing=audit.standing(),
        agreement=_agreement(given),
        drawn=drawn,
        labelled=len(given),
        mine=sum(label.member_id == actor.member_id for label in labels),
        has_data=has_data,
    )


def _agreement(given: Mapping[int, list[AuditLabel]]) -> Agreement:
    shared = [[label.label for label in labels] for labels in given.values() if len(labels) > 1]
    return Agreement(
        units=len(shared),
        equal=sum(len(set(labels)) == 1 for labels in shared),
        kappa=cohen_kappa([(labels[0], labels[1]) for labels in shared]),
        alpha=krippendorff_alpha(shared),
    )


def keep(tx: Transaction, audit: Audit, drawn: Drawn) -> None:
    """Store units of an audit that is still the same, while its data file cannot be deleted."""
    if tx.datasets.get_for_share(audit.sha256) is None or not _is_same(tx.audits.get_for_update(audit.sha256), audit):
        raise ConflictError("The dataset or its audit has just changed. Open the next row.")
    tx.audits.put_units(drawn.units)


def _is_same(one: Audit | None, other: Audit) -> bool:
    """Whether both have the same order of units."""
    return one is not None and (one.seed, one.strata_kind) == (other.seed, other.strata_kind)


def draw_more(ctx: Context, actor: Actor, sha256: str) -> int:
    """Draw the next units of the order. Returns the number of drawn units."""
    with ctx.uow() as tx:
        audit = audit_of(tx, actor, sha256)
        dataset = require_data(tx, sha256, actor)
        first = tx.audits.count_units(sha256)
    if first >= audit.units:
        raise ConflictError("All rows of this dataset are drawn already.")
    if first >= MAX_UNITS:
        raise ConflictError(f"An audit has at most {MAX_UNITS} rows.")
    places = range(first, min(first + BATCH, MAX_UNITS))
    drawn = drawn_from(ctx, dataset, RowFormat(audit.row_format), audit.seed, audit.strata_kind, places)
    with ctx.uow() as tx:
        keep(tx, audit, drawn)
        return tx.audits.count_units(sha256)


def words_of(ctx: Context, hashes: Collection[str]) -> dict[str, str]:
    """Each of these datasets' audit in a few words: "not audited", or the share of wrong rows with its interval."""
    with ctx.uow() as tx:
        audits = tx.audits.some(hashes)
    return {sha256: in_words(audits.get(sha256)) for sha256 in hashes}


@dataclass(frozen=True, kw_only=True)
class AuditedData:
    """A data file of a job with the name that its owner gave it, and its audit in a few words."""

    sha256: str
    name: str
    words: str


def of_data(ctx: Context, member_id: str, hashes: Iterable[str]) -> list[AuditedData]:
    """The data files of a member's job, in this order, each once. The name of a deleted file is part of its sha256."""
    wanted = list(dict.fromkeys(hashes))
    with ctx.uow() as tx:
        files = {sha256: tx.datasets.get_of(sha256, member_id) or tx.datasets.get(sha256) for sha256 in wanted}
        audits = tx.audits.some(wanted)
    return [
        AuditedData(
            sha256=sha256, name=file.name if file is not None else sha256[:12], words=in_words(audits.get(sha256))
        )
        for sha256, file in files.items()
    ]
