"""The labels of an audit as a list, for files."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.audits import by_place, settled
from orchestrator.services.audits import audit_of
from orchestrator.services.context import Context


@dataclass(frozen=True, kw_only=True)
class ExportedLabel:
    """One label of one person, with the unit's place in the order and its row in the file (both from 1).

    `turn` is the number of the unit's part of the row (from 1). `result` is what the labels of all raters say together.
    """

    place: int
    row: int
    turn: int
    stratum: str
    label: str
    result: str
    rater: str
    source: str
    note: str
    at: float


def export(ctx: Context, actor: Actor, sha256: str) -> list[ExportedLabel]:
    """All labels in the order of the sample, without the texts of the rows."""
    with ctx.uow() as tx:
        audit_of(tx, actor, sha256)
        units = {unit.place: unit for unit in tx.audits.units(sha256)}
        given = by_place(tx.audits.labels(sha256))
        raters = {member: tx.members.get(member) for member in {e.member_id for es in given.values() for e in es}}
    names = {member: found.name if found is not None else member for member, found in raters.items()}
    return [
        ExportedLabel(
            place=place + 1,
            row=units[place].row + 1,
            turn=units[place].turn + 1,
            stratum=units[place].stratum,
            label=label.label,
            result=settled(one.label for one in labels),
            rater=names[label.member_id],
            source=label.source,
            note=label.note,
            at=label.at,
        )
        for place, labels in sorted(given.items())
        for label in labels
    ]
