"""Channels and their deliveries in the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from sqlalchemy import delete, func, insert, select, update

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.mapper import JOBS, Mapper
from orchestrator.adapters.database.transaction import SqlTransaction
from orchestrator.domain.model import Event, Job
from orchestrator.ports.notifications import Channel, ChannelKind, Delivery, DeliveryState

_channels, _deliveries = tables.channels, tables.deliveries
CHANNELS = Mapper(Channel, _channels, enums={"kind": ChannelKind})
DELIVERIES = Mapper(Delivery, _deliveries, enums={"state": DeliveryState})


class NoticeBook:
    """Implements `notice_ports.Book` over the server's own transactions."""

    def __init__(self, uow: Callable[[], AbstractContextManager[SqlTransaction]]) -> None:
        self._uow = uow

    def channels(self, member_id: str | None = None) -> list[Channel]:
        mine = [_channels.c.member_id == member_id] if member_id else []
        with self._uow() as tx:
            return CHANNELS.where(tx.connection, *mine, order=_channels.c.created_at)

    def add_channel(self, channel: Channel) -> None:
        with self._uow() as tx:
            CHANNELS.add(tx.connection, channel)

    def remove_channel(self, channel_id: str) -> None:
        with self._uow() as tx:
            tx.connection.execute(delete(_deliveries).where(_deliveries.c.channel_id == channel_id))
            tx.connection.execute(delete(_channels).where(_channels.c.id == channel_id))

    def set_active(self, channel_id: str, active: bool) -> None:
        with self._uow() as tx:
            tx.connection.execute(update(_channels).where(_channels.c.id == channel_id).values(active=active))

    def newest_event(self) -> int:
        with self._uow() as tx:
            return tx.connection.execute(select(func.max(tables.events.c.id))).scalar() or 0

    def events_after(self, after: int, limit: int) -> list[tuple[Event, Job | None]]:
        with self._uow() as tx:
            events = tx.events(after=after, job_id=None, limit=limit)
            jobs = {j: JOBS.get(tx.connection, id=j) for j in {event.job_id for event in events}}
        return [(event, jobs[event.job_id]) for event in events]

    def note(self, deliveries: Sequence[Delivery], looked_at: int | None) -> None:
        with self._uow() as tx:
            for one in deliveries:
                known = select(_deliveries.c.id).where(
                    _deliveries.c.channel_id == one.channel_id, _deliveries.c.key == one.key
                )
                if tx.connection.execute(known).first() is None:
                    tx.connection.execute(insert(_deliveries), [DELIVERIES.dump(one)])
            if looked_at is not None:
                behind = _channels.c.after_event < looked_at
                tx.connection.execute(update(_channels).where(behind).values(after_event=looked_at))

    def digest(self, channel_id: str, topic: str, job_id: str) -> Delivery | None:
        pending = (
            _deliveries.c.channel_id == channel_id,
            _deliveries.c.topic == topic,
            _deliveries.c.state == DeliveryState.PENDING.value,
            _deliveries.c.attempts == 0,
        )
        with self._uow() as tx:
            found = DELIVERIES.where(tx.connection, *pending)
        return next((d for d in found if d.body["data"].get("job") == job_id), None)

    def due(self, now: float, limit: int) -> list[Delivery]:
        due = (_deliveries.c.state == DeliveryState.PENDING.value, _deliveries.c.next_at <= now)
        with self._uow() as tx:
            return DELIVERIES.where(tx.connection, *due, order=_deliveries.c.next_at)[:limit]

    def save(self, delivery: Delivery) -> None:
        with self._uow() as tx:
            DELIVERIES.save(tx.connection, delivery)

    def deliveries(self, channel_id: str, limit: int) -> list[Delivery]:
        statement = DELIVERIES.select.where(_deliveries.c.channel_id == channel_id)
        with self._uow() as tx:
            rows = tx.connection.execute(statement.order_by(_deliveries.c.created_at.desc()).limit(limit))
            return [DELIVERIES.load(row) for row in rows]
