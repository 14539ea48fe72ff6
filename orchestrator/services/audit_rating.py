"""What raters do in an audit: they see one unit after the other, and label it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from orchestrator.domain.accounts import Actor
from orchestrator.domain.audits import Audit, AuditLabel, AuditUnit, count_labels, next_place
from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.domain.storage import Dataset
from orchestrator.domain.trust.audit_estimate import Label
from orchestrator.domain.trust.audit_sample import is_rated_twice
from orchestrator.ports.repository import Transaction
from orchestrator.services.audits import BATCH, audit_of, drawn_from, keep, require_data
from orchestrator.services.context import Context
from worker.shared.dataset_spec import RowFormat

MAX_SOURCE, MAX_NOTE = 500, 2_000
"""Characters of a source's address, and of a note."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One part of a unit. `cut` characters of it are not shown."""

    role: str
    text: str
    cut: int


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A unit as a rater sees it: the turns up to the answer, and the rater's own label if there is one.

    `unit` names the unit within the dataset. `previous` is the place of the unit that the rater labelled before it in
    the order. `twice` says whether a second person labels it too.
    """

    place: int
    unit: str
    row: int
    turns: tuple[Turn, ...]
    label: AuditLabel | None
    previous: int | None
    twice: bool


def next_screen(ctx: Context, actor: Actor, sha256: str) -> Screen | None:
    """The next unit for the actor, or None if all drawn units that need a label of theirs have one."""
    with ctx.uow() as tx:
        audit = audit_of(tx, actor, sha256)
        units, labels = tx.audits.units(sha256), tx.audits.labels(sha256)
    place = next_place(audit.seed, units, labels, actor.member_id, ctx.clock.now())
    return None if place is None else screen(ctx, actor, sha256, place)


def screen(ctx: Context, actor: Actor, sha256: str, place: int) -> Screen:
    """One unit with the actor's own label. Labels of others are not shown, so that raters do not influence each other.

    After the same file was uploaded again, its texts are read again.
    """
    with ctx.uow() as tx:
        audit = audit_of(tx, actor, sha256)
        dataset = require_data(tx, sha256, actor)
        unit = _unit(tx, sha256, place)
        mine = {label.place: label for label in tx.audits.labels(sha256) if label.member_id == actor.member_id}
    if not unit.content:
        unit = _read_again(ctx, audit, dataset, unit)
    return Screen(
        place=place,
        unit=_name(unit),
        row=unit.row + 1,
        turns=tuple(Turn(role=role, text=text, cut=cut) for role, text, cut in json.loads(unit.content)),
        label=mine.get(place),
        previous=max((other for other in mine if other < place), default=None),
        twice=is_rated_twice(audit.seed, unit.row, unit.turn),
    )


def _name(unit: AuditUnit) -> str:
    return f"{unit.row}.{unit.turn}"


def _unit(tx: Transaction, sha256: str, place: int) -> AuditUnit:
    unit = tx.audits.unit(sha256, place)
    if unit is None:
        raise NotFoundError(f"The sample of this audit has no row {place + 1}. Open the next row instead.")
    return unit


def _read_again(ctx: Context, audit: Audit, dataset: Dataset, unit: AuditUnit) -> AuditUnit:
    first = unit.place - unit.place % BATCH
    places = range(first, first + BATCH)
    drawn = drawn_from(ctx, dataset, RowFormat(audit.row_format), audit.seed, audit.strata_kind, places)
    with ctx.uow() as tx:
        keep(tx, audit, drawn)
        return _unit(tx, audit.sha256, unit.place)


def give(
    ctx: Context,
    actor: Actor,
    sha256: str,
    place: int,
    *,
    unit: str,
    label: Label,
    source: str = "",
    note: str = "",
) -> Audit:
    """Label a unit. A second label of the same member replaces the first one.

    `unit` is the name of the unit that the rater saw. Raises `ConflictError` if the audit was started again since then,
    or if the data file was deleted.
    """
    with ctx.uow() as tx:
        require_data(tx, sha256, actor)
        audit = audit_of(tx, actor, sha256, lock=True)
        if _name(_unit(tx, sha256, place)) != unit:
            raise ConflictError("This audit was started again since this row was opened. Open the next row.")
        tx.audits.put_label(
            AuditLabel(
                sha256=sha256,
                place=place,
                member_id=actor.member_id,
                label=label,
                source=_plain(source, MAX_SOURCE),
                note=_plain(note, MAX_NOTE),
                at=ctx.clock.now(),
            )
        )
        strata = {one.place: one.stratum for one in tx.audits.units(sha256)}
        audit = replace(audit, counts=count_labels(strata, tx.audits.labels(sha256)))
        tx.audits.save(audit)
    return audit


def _plain(text: str, most: int) -> str:
    """Text that both databases can store: PostgreSQL has no NUL characters."""
    return text.replace("\0", " ").strip()[:most]
