"""The interface of the sender of notifications."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.notifications import ChannelKind, Delivery


class NotSent(Exception):
    """A message was not delivered. `final` says that trying again is useless."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Notifier(Protocol):
    """Sends messages, never inside a database transaction.

    An address may be inside the server's own network only with `anywhere`.
    """

    def check(self, address: str, *, anywhere: bool) -> tuple[ChannelKind, str]:
        """Kind and harmless label of an address. Raises `InvalidError` for one that cannot be used."""
        ...

    def send(
        self, kind: ChannelKind, address: str, secret: str, delivery: Delivery, at: float, *, anywhere: bool
    ) -> None:
        """Send the message. Raises `NotSent` in words that hold no secret."""
        ...
