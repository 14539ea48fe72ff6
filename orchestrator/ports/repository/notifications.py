"""Repositories of notification channels and of the messages to them."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.notifications import Channel, Delivery


class ChannelRepository(Protocol):
    """Notification channels of members."""

    def all(self, member_id: str | None = None) -> list[Channel]:
        """All channels, oldest first. With a member, only theirs."""
        ...

    def add(self, channel: Channel) -> None: ...
    def delete(self, channel_id: str) -> None:
        """Delete the channel and its deliveries."""
        ...

    def set_active(self, channel_id: str, active: bool) -> None: ...
    def set_after_event(self, event_id: int) -> None:
        """All channels have now handled the events up to this one."""
        ...


class DeliveryRepository(Protocol):
    """Messages to channels, sent or still to be sent."""

    def add(self, delivery: Delivery) -> None:
        """Insert the delivery unless its channel already has one with the same key."""
        ...

    def save(self, delivery: Delivery) -> None: ...
    def of_channel(self, channel_id: str, limit: int) -> list[Delivery]:
        """The newest deliveries of the channel, newest first."""
        ...

    def due(self, now: float, limit: int) -> list[Delivery]:
        """Pending deliveries whose time has come, the most overdue first."""
        ...

    def untried(self, channel_id: str, topic: str, job_id: str) -> Delivery | None:
        """A pending delivery of this topic about this job that was never tried."""
        ...

    def delete_old(self, before: float, limit: int) -> int:
        """Delete up to `limit` deliveries made before that time, but no pending one. Returns how many were deleted."""
        ...
