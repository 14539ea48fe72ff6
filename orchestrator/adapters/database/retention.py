"""The part of a transaction that forgets what is too old for anybody to need; each call a few rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, select, tuple_

from orchestrator.adapters.database import tables
from orchestrator.ports.notifications import DeliveryState

_tokens, _deliveries, _readings = tables.tokens, tables.deliveries, tables.readings


class AgedRows:
    """See `persistence.Transaction`."""

    connection: Connection

    def forget_expired_tokens(self, before: float, limit: int) -> int:
        old = select(_tokens.c.id).where(_tokens.c.expires_at < before).limit(limit)
        return self._forget(delete(_tokens).where(_tokens.c.id.in_(old)))

    def forget_deliveries(self, before: float, limit: int) -> int:
        is_over = _deliveries.c.state != DeliveryState.PENDING.value
        old = select(_deliveries.c.id).where(_deliveries.c.created_at < before, is_over).limit(limit)
        return self._forget(delete(_deliveries).where(_deliveries.c.id.in_(old)))

    def forget_readings(self, first_lease: str, limit: int) -> int:
        key = (_readings.c.lease_id, _readings.c.at)
        old = select(*key).where(_readings.c.lease_id < first_lease).order_by(*key).limit(limit)
        return self._forget(delete(_readings).where(tuple_(*key).in_(old)))

    def _forget(self, gone: Any) -> int:
        return self.connection.execute(gone).rowcount
