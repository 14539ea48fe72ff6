"""Notification channels and the messages that go to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ChannelKind(StrEnum):
    """How a message is sent: to a service of Apprise, or as a signed webhook."""

    APPRISE = "apprise"
    WEBHOOK = "webhook"


class Topic(StrEnum):
    """The topics of notifications."""

    STARTED = "started"
    HANDED_OFF = "handed_off"
    QUOTA_LOW = "quota_low"
    STALLED = "stalled"
    NEEDS_PERSON = "needs_person"
    FAILED = "failed"
    FINISHED = "finished"


class DeliveryState(StrEnum):
    """The state of a message."""

    PENDING = "pending"
    SENT = "sent"
    FAILED = "failed"


@dataclass(kw_only=True)
class Channel:
    """Where a member gets notifications, and about which topics of one job or of all.

    `sealed` is the address with its secrets, sealed by the vault. `label` is the part that may be shown. Events up to
    `after_event` have been handled.
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
    """One message to one channel. A channel never gets two with the same `key`. `body` is what a webhook is sent."""

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
