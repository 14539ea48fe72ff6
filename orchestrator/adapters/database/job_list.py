"""The ids of one page of the list of jobs, in the order that is asked for.

The cursor of a page is the place of its last job in that order: its key and its id. So a page begins where the one
before ended, also when jobs come and go in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, TypedDict

from sqlalchemy import ColumnElement, and_, case, func, literal, select, tuple_

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.tables import MAX_VALUE
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.lifecycle import JobState

_jobs, _metrics, _tags = tables.jobs, tables.metrics, tables.job_tags
_STATES = {state.value: place for place, state in enumerate(JobState)}
_OF_OTHERS = ("evaluation", "export", "chat")
"""Keys of the spec of a job that does not train."""
_LAST = 2
"""The rank of a job that has no value to be ordered by."""

All = Callable[[Any], list[dict[str, Any]]]


class Order(StrEnum):
    """What a list is ordered by. With `-` it is the other way round. Jobs without the value are always last.

    `best` is the newest eval loss, lowest first. The jobs without one follow, by their newest loss.
    """

    SUBMITTED = "submitted"
    BEST = "best"
    NAME = "name"
    NAME_DOWN = "-name"
    STATE = "state"
    STATE_DOWN = "-state"
    LOSS = "loss"
    LOSS_DOWN = "-loss"

    @property
    def is_down(self) -> bool:
        """Whether the largest value is first."""
        return self.startswith("-")


class Wanted(TypedDict, total=False):
    """Which jobs a list has. `name` is a text in their names, whose case does not matter. None means all.

    `trains` leaves out evaluations, exports and chats.
    """

    member_id: str | None
    state: JobState | None
    name: str | None
    tag: str | None
    trains: bool


def value_of(metric: str, *, newest: bool) -> Any:
    """A job's first or newest value of a metric, as a scalar subquery."""
    step = _metrics.c.step.desc() if newest else _metrics.c.step
    of_job = and_(_metrics.c.job_id == _jobs.c.id, _metrics.c.name == metric)
    return select(_metrics.c.value).where(of_job).order_by(step).limit(1).correlate(_jobs).scalar_subquery()


def page(
    read: All, order: Order, cursor: str | None, *, limit: int, scanned: int, wanted: Wanted
) -> tuple[list[str], str | None]:
    """The ids of the jobs, and the cursor of the next page.

    Newest first, an index finds the jobs. For filters without one, a page reads at most `scanned` jobs and may be
    short. In any other order, the newest `scanned` jobs are ordered. Raises `InvalidError` for a cursor that is none.
    """
    indexed, rest = _conditions(wanted)
    if order is not Order.SUBMITTED:
        return _ordered(read, order, cursor, limit, scanned, (indexed, rest))
    indexed += [_jobs.c.id < cursor] if cursor else []
    near = select(_jobs.c.id).where(*indexed).order_by(_jobs.c.id.desc())
    if rest:
        window = near.add_columns(and_(*rest).label("wanted")).limit(scanned).subquery()
        ids = [r["id"] for r in read(select(window.c.id).where(window.c.wanted).limit(limit + 1))]
        ids.sort(reverse=True)
    else:
        ids = [r["id"] for r in read(near.limit(limit + 1))]
    if len(ids) > limit:
        return ids[:limit], ids[limit - 1]
    end = read(near.offset(scanned - 1).limit(1)) if rest else []
    return ids, end[0]["id"] if end else None


def _conditions(wanted: Wanted) -> tuple[list[Any], list[Any]]:
    """Conditions that an index answers, and others."""
    member_id, state, name, tag = (wanted.get(key) for key in ("member_id", "state", "name", "tag"))
    indexed: list[Any] = [_jobs.c.deleted_at.is_(None)]
    rest: list[Any] = []
    indexed += [_jobs.c.id.in_(select(_tags.c.job_id).where(_tags.c.tag == tag))] if tag else []
    if member_id is not None:
        indexed.append(_jobs.c.member_id == member_id)
        rest += [_jobs.c.state == state] if state else []
    elif state is not None:
        indexed.append(_jobs.c.state == state)
    if name:
        rest.append(func.lower(_jobs.c.name).contains(str(name).lower(), autoescape=True))
    if wanted.get("trains"):
        rest += [_jobs.c.spec[key].as_string().is_(None) for key in _OF_OTHERS]
    return indexed, rest


def _ordered(
    read: All, order: Order, cursor: str | None, limit: int, scanned: int, conditions: tuple[list[Any], list[Any]]
) -> tuple[list[str], str | None]:
    indexed, rest = conditions
    wanted = and_(*rest) if rest else literal(value=True)
    columns = [_jobs.c.id, wanted.label("wanted"), func.lower(_jobs.c.name).label("name"), _jobs.c.state]
    columns += [value_of(metric, newest=True).label(metric) for metric in _metrics_of(order)]
    window = select(*columns).where(*indexed).order_by(_jobs.c.id.desc()).limit(scanned).subquery()
    place = [*(column.label(f"key{n}") for n, column in enumerate(_key(order, window.c))), window.c.id]
    numbered = select(*place).where(window.c.wanted).subquery()
    found = select(numbered)
    if cursor:
        after = tuple_(*map(literal, _place(order, cursor, len(place) - 1)))
        found = found.where(tuple_(*numbered.c) < after if order.is_down else tuple_(*numbered.c) > after)
    found = found.order_by(*(column.desc() if order.is_down else column for column in numbered.c))
    rows = read(found.limit(limit + 1))
    ids = [row["id"] for row in rows[:limit]]
    return ids, json.dumps(list(rows[limit - 1].values())) if len(rows) > limit else None


def _metrics_of(order: Order) -> tuple[str, ...]:
    if order is Order.BEST:
        return ("eval_loss", "loss")
    return ("loss",) if order in (Order.LOSS, Order.LOSS_DOWN) else ()


def _key(order: Order, of: Any) -> list[ColumnElement[Any]]:
    """The columns of the order, besides the id, from those of the jobs."""
    if order in (Order.NAME, Order.NAME_DOWN):
        return [of.name]
    if order in (Order.STATE, Order.STATE_DOWN):
        return [case(_STATES, value=of.state, else_=len(_STATES))]
    ranked = [(of[metric].between(-MAX_VALUE, MAX_VALUE), place) for place, metric in enumerate(_metrics_of(order))]
    values = [(there, of[metric]) for (there, _), metric in zip(ranked, _metrics_of(order), strict=True)]
    return [case(*ranked, else_=-1 if order.is_down else _LAST), case(*values, else_=literal(0.0))]


def _place(order: Order, cursor: str, keys: int) -> Sequence[Any]:
    """The key and the id that a cursor stands for."""
    text = order in (Order.NAME, Order.NAME_DOWN)
    try:
        found = json.loads(cursor)
        *key, ident = found
        fits = len(key) == keys and isinstance(ident, str) and all(_fits(each, text=text) for each in key)
        json.dumps(found, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, TypeError, RecursionError):
        fits, found = False, ()
    if not fits:
        raise InvalidError("This address of a page of the list is not valid. Begin at the first page.")
    return found


def _fits(value: Any, *, text: bool) -> bool:
    if text:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_VALUE
