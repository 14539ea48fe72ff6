"""Notifications and transactions: messages are written in them, and sent outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.notifier import WebNotifier
from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.notifications import DeliveryState, Topic
from orchestrator.ports.repository import Transaction
from orchestrator.services import notifications
from orchestrator.services.notifications import NotificationContext
from tests.dashboard.receivers import Receiver, receiving
from tests.helpers.world import Watch, World
from tests.services.test_deletion import trained


class WatchedNotifier(WebNotifier):
    """The real notifier. It refuses to send while a transaction is open."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def send(self, *message: Any, **options: Any) -> None:
        self._watch.check()
        super().send(*message, **options)


@pytest.fixture
def context(world: World) -> NotificationContext:
    return NotificationContext(ctx=world.ctx, notifier=WatchedNotifier(world.watch))


@pytest.fixture
def alice(world: World) -> Actor:
    """An admin: only their messages may go to this computer."""
    with world.ctx.uow() as tx:
        member = tx.members.get("alice")
        assert member is not None
        tx.members.save(replace(member, role=Role.ADMIN))
    return replace(world.actors["alice"], role=Role.ADMIN)


def listen(context: NotificationContext, actor: Actor, receiver: Receiver) -> str:
    channel, _ = notifications.add_channel(context, actor, url=receiver.url, topics=list(Topic))
    return channel.id


def test_nothing_is_sent_inside_a_transaction(world: World, context: NotificationContext, alice: Actor) -> None:
    """Guard: with the round's `_send` moved into the transaction that reads what is due, this failed."""
    with receiving() as receiver:
        channel = listen(context, alice, receiver)
        assert notifications.send_test(context, alice, channel).state is DeliveryState.SENT
        trained(world)
        assert notifications.deliver_due(context) == 2
    log = notifications.deliveries(context, alice, channel, 10)
    assert {d.state for d in log} == {DeliveryState.SENT}
    assert {d.topic for d in log} == {"test", "started", "finished"}


def test_a_host_that_cannot_be_a_name_stops_no_other_message(
    world: World, context: NotificationContext, alice: Actor
) -> None:
    """Guard: without `UnicodeError` in `_post` the round ended at this channel's message, every time."""
    with receiving() as receiver:
        broken, _ = notifications.add_channel(context, alice, url="https://a..b/hook", topics=list(Topic))
        channel = listen(context, alice, receiver)
        trained(world)
        assert notifications.deliver_due(context) == 2
    assert {d.detail for d in notifications.deliveries(context, alice, broken.id, 10)} == {"no answer (UnicodeError)"}
    assert {d.state for d in notifications.deliveries(context, alice, channel, 10)} == {DeliveryState.SENT}


def test_messages_and_handled_events_are_kept_together(
    world: World, context: NotificationContext, alice: Actor
) -> None:
    """Guard: with `set_after_event` in an earlier transaction of its own, the messages were lost."""

    @contextlib.contextmanager
    def failing() -> Iterator[Transaction]:
        with world.watch() as tx:
            yield tx
            if tx.deliveries.due(world.clock.now(), 1):
                raise OSError("the disk is full")

    with receiving() as receiver:
        listen(context, alice, receiver)
        trained(world)
        broken = replace(context, ctx=replace(world.ctx, uow=failing))
        with pytest.raises(OSError, match="disk"):
            notifications.deliver_due(broken)
        assert receiver.got == []
        assert notifications.deliver_due(context) == 2


def test_handled_events_do_not_become_new_again(world: World, context: NotificationContext, alice: Actor) -> None:
    """Guard: without `is_behind` a round with an older event moved the channel back."""
    with receiving() as receiver:
        listen(context, alice, receiver)
        trained(world)
        with world.ctx.uow() as tx:
            tx.channels.set_after_event(tx.events.newest_id())
            tx.channels.set_after_event(1)
        assert notifications.deliver_due(context) == 0
        assert receiver.got == []
