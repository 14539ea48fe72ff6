"""What notifications need from the outside: a book of channels and deliveries, and somebody who carries messages out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.domain.model import Event, Job


class ChannelKind(StrEnum):
    """How a message goes out: to one of Apprise's services, or as a signed request."""

    APPRISE = "apprise"
    WEBHOOK = "webhook"


class Topic(StrEnum):
    """What a channel may be told of."""

    STARTED = "started"
    HANDED_OFF = "handed_off"
    QUOTA_LOW = "quota_low"
    STALLED = "stalled"
    NEEDS_PERSON = "needs_person"
    FAILED = "failed"
    FINISHED = "finished"


class DeliveryState(StrEnum):
    """Where a message stands."""

    PENDING = "pending"
    SENT = "sent"
    FAILED = "failed"


@dataclass(kw_only=True)
class Channel:
    """Where a member wants to be told of which topics, of all jobs or of one.

    `sealed` is the address with its secrets, sealed by the vault; `label` is what may be shown of it. Events up to
    `after_event` have been looked at.
    """

    id: str
    member_id: str
    job_id: str | None
    kind: ChannelKind
    label: str
    topics: list[str]
    active: bool = True
    after_event: int
    created_at: float
    sealed: str = field(repr=False)


@dataclass(kw_only=True)
class Delivery:
    """One message to one channel. The same `key` is never noted twice for a channel; `body` is what a webhook is sent."""

    id: str
    channel_id: str
    key: str
    topic: str
    title: str
    text: str
    body: dict[str, Any]
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    detail: str = ""
    next_at: float
    created_at: float
    sent_at: float | None = None


class NotSent(Exception):
    """A message did not get there. `final` says that trying again is useless."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Carrier(Protocol):
    """Carries messages out; never inside a database transaction. Only `anywhere` may they go inside the server's own network."""

    def check(self, address: str, *, anywhere: bool) -> tuple[ChannelKind, str]:
        """Kind and harmless label of an address; raises `InvalidError` for one that cannot be used."""
        ...

    def send(
        self, kind: ChannelKind, address: str, secret: str, delivery: Delivery, at: float, *, anywhere: bool
    ) -> None:
        """Hand the message over; raises `NotSent` in words that hold no secret."""
        ...


class ChannelRepository(Protocol):
    """Channels and deliveries at rest; every call is a transaction of its own."""

    def channels(self, member_id: str | None = None) -> list[Channel]: ...
    def add_channel(self, channel: Channel) -> None: ...
    def remove_channel(self, channel_id: str) -> None: ...
    def set_active(self, channel_id: str, active: bool) -> None: ...
    def newest_event(self) -> int: ...
    def events_after(self, after: int, limit: int) -> list[tuple[Event, Job | None]]:
        """Events with a larger id and their jobs, oldest first."""
        ...

    def note(self, deliveries: Sequence[Delivery], looked_at: int | None) -> None:
        """Write deliveries down, each key once; every channel has then looked at events up to `looked_at`."""
        ...

    def digest(self, channel_id: str, topic: str, job_id: str) -> Delivery | None:
        """The pending message of this topic about this job that has not gone out yet."""
        ...

    def due(self, now: float, limit: int) -> list[Delivery]: ...
    def save(self, delivery: Delivery) -> None: ...
    def deliveries(self, channel_id: str, limit: int) -> list[Delivery]:
        """Newest first."""
        ...
