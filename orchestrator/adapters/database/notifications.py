"""The repositories of notification channels and of the messages to them."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.notifications import Channel, ChannelKind, Delivery, DeliveryState

CHANNELS = Mapper(Channel, tables.channels, enums={"kind": ChannelKind})
DELIVERIES = Mapper(Delivery, tables.deliveries, enums={"state": DeliveryState})
_channels, _deliveries = tables.channels, tables.deliveries
_is_pending = _deliveries.c.state == DeliveryState.PENDING.value


class SqlChannelRepository(SqlRepository):
    """Implements `ports.repository.notifications.ChannelRepository`."""

    def all(self, member_id: str | None = None) -> list[Channel]:
        conditions = [_channels.c.member_id == member_id] if member_id else []
        return CHANNELS.where(self._connection, *conditions, order=_channels.c.created_at)

    def add(self, channel: Channel) -> None:
        CHANNELS.add(self._connection, channel)

    def delete(self, channel_id: str) -> None:
        self._connection.execute(delete(_deliveries).where(_deliveries.c.channel_id == channel_id))
        self._connection.execute(delete(_channels).where(_channels.c.id == channel_id))

    def set_active(self, channel_id: str, active: bool) -> None:
        self._connection.execute(update(_channels).where(_channels.c.id == channel_id).values(active=active))

    def set_after_event(self, event_id: int) -> None:
        is_behind = _channels.c.after_event < event_id
        self._connection.execute(update(_channels).where(is_behind).values(after_event=event_id))


class SqlDeliveryRepository(SqlRepository):
    """Implements `ports.repository.notifications.DeliveryRepository`."""

    def add(self, delivery: Delivery) -> None:
        this = (_deliveries.c.channel_id == delivery.channel_id, _deliveries.c.key == delivery.key)
        if self._connection.execute(select(_deliveries.c.id).where(*this)).first() is None:
            DELIVERIES.add(self._connection, delivery)

    def save(self, delivery: Delivery) -> None:
        DELIVERIES.save(self._connection, delivery)

    def of_channel(self, channel_id: str, limit: int) -> list[Delivery]:
        statement = DELIVERIES.select.where(_deliveries.c.channel_id == channel_id)
        newest = statement.order_by(_deliveries.c.created_at.desc()).limit(limit)
        return [DELIVERIES.load(row) for row in self._connection.execute(newest)]

    def due(self, now: float, limit: int) -> list[Delivery]:
        due = DELIVERIES.select.where(_is_pending, _deliveries.c.next_at <= now)
        overdue_first = due.order_by(_deliveries.c.next_at).limit(limit)
        return [DELIVERIES.load(row) for row in self._connection.execute(overdue_first)]

    def untried(self, channel_id: str, topic: str, job_id: str) -> Delivery | None:
        this = (_deliveries.c.channel_id == channel_id, _deliveries.c.topic == topic)
        untried = DELIVERIES.where(self._connection, *this, _is_pending, _deliveries.c.attempts == 0)
        return next((d for d in untried if d.body["data"].get("job") == job_id), None)

    def delete_old(self, before: float, limit: int) -> int:
        old = select(_deliveries.c.id).where(_deliveries.c.created_at < before, ~_is_pending).limit(limit)
        return self._connection.execute(delete(_deliveries).where(_deliveries.c.id.in_(old))).rowcount
