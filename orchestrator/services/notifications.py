"""Notifications: channels, messages about new events, and their delivery with retries."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.jobs import Event, Job
from orchestrator.domain.notifications import Channel, ChannelKind, Delivery, DeliveryState, Topic
from orchestrator.ports.notifications import Notifier, NotSent
from orchestrator.ports.repository import Transaction
from orchestrator.ports.system import VaultError
from orchestrator.services import capacity
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context, new_id

DIGEST_S = 1_800.0
"""Hand-offs within this time of the first one share one message."""

STALLED_S = 1_800.0
"""A running job without a new safe point for this long is stalled."""

QUOTA_LOW_H = 2.0
RETRY_S = (10.0, 60.0, 300.0, 1_800.0, 7_200.0)
EVENTS_AT_ONCE = 500
SENT_AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class NotificationContext:
    """The context of every use case, and the sender of messages."""

    ctx: Context
    notifier: Notifier


def add_channel(
    context: NotificationContext, actor: Actor, *, url: str, topics: list[Topic], job_id: str | None = None
) -> tuple[Channel, str | None]:
    """Add a channel for the actor. Returns it and the secret of a webhook, which is shown only once.

    Only an admin's channel may be in the server's own network, which has many services that are not meant for members.
    """
    kind, label = context.notifier.check(url, anywhere=actor.role is Role.ADMIN)
    now = context.ctx.clock.now()
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() if kind is ChannelKind.WEBHOOK else None
    sealed = context.ctx.vault.seal(json.dumps({"url": url.strip(), "secret": secret or ""}))
    with context.ctx.uow() as tx:
        if job_id is not None:
            owned_job(tx, actor, job_id)
        channel = Channel(
            id=new_id("channel", now),
            member_id=actor.member_id,
            job_id=job_id,
            kind=kind,
            label=label,
            topics=[str(topic) for topic in topics],
            after_event=tx.events.newest_id(),
            created_at=now,
            sealed=sealed,
        )
        tx.channels.add(channel)
    return channel, secret


def channels(context: NotificationContext, actor: Actor) -> list[Channel]:
    """The actor's own channels."""
    with context.ctx.uow() as tx:
        return tx.channels.all(actor.member_id)


def deliveries(context: NotificationContext, actor: Actor, channel_id: str, limit: int) -> list[Delivery]:
    """The newest messages to one of the actor's channels, newest first. Raises `NotFoundError`."""
    with context.ctx.uow() as tx:
        return tx.deliveries.of_channel(_own_channel(tx, actor, channel_id).id, limit)


def _own_channel(tx: Transaction, actor: Actor, channel_id: str) -> Channel:
    """One of the actor's channels. The channels of others do not exist for them."""
    channel = next((c for c in tx.channels.all(actor.member_id) if c.id == channel_id), None)
    if channel is None:
        raise NotFoundError(f"There is no channel {channel_id}. List them with `trainhop notifications ls`.")
    return channel


def remove_channel(context: NotificationContext, actor: Actor, channel_id: str) -> None:
    """Delete a channel, its address and its log. Raises `NotFoundError`."""
    with context.ctx.uow() as tx:
        tx.channels.delete(_own_channel(tx, actor, channel_id).id)


def send_test(context: NotificationContext, actor: Actor, channel_id: str) -> Delivery:
    """Send one message now. Returns it with its outcome. A message that arrives turns its channel on again."""
    now = context.ctx.clock.now()
    with context.ctx.uow() as tx:
        channel = _own_channel(tx, actor, channel_id)
        text = "This is a test message. Notifications work."
        delivery = _delivery(channel, f"test:{now}", "test", "Trainhop: test", text, {}, now)
        tx.deliveries.add(delivery)
    _send(context, channel, delivery, last=True)
    if delivery.state is DeliveryState.SENT and not channel.active:
        with context.ctx.uow() as tx:
            tx.channels.set_active(channel.id, True)
    return delivery


# --- the scheduler calls this once per round ---------------------------------------------------------------


def deliver_due(context: NotificationContext) -> int:
    """Turn new events into messages and send those that are due. Returns how many were sent."""
    with context.ctx.uow() as tx:
        channels = tx.channels.all()
    if not channels:
        return 0
    while _handle_events(context, channels):
        pass
    with context.ctx.uow() as tx:
        due = tx.deliveries.due(context.ctx.clock.now(), SENT_AT_ONCE)
    by_id = {c.id: c for c in channels}
    due = [d for d in due if d.channel_id in by_id]
    for delivery in due:
        _send(context, by_id[delivery.channel_id], delivery)
    return sum(d.state is DeliveryState.SENT for d in due)


def _handle_events(context: NotificationContext, channels: list[Channel]) -> bool:
    """Write down the messages of the next events, in one transaction. Returns whether there were any events."""
    with context.ctx.uow() as tx:
        events = tx.events.after(min(c.after_event for c in channels), limit=EVENTS_AT_ONCE)
        if not events:
            return False
        jobs = tx.jobs.get_many({event.job_id for event in events})
        for event in events:
            job, topic = jobs.get(event.job_id), _topic(event)
            if job is None or topic is None:
                continue
            for channel in channels:
                if (event.id or 0) > channel.after_event and _wants(channel, job, topic):
                    _add_message(tx, channel, job, topic, event)
        newest = events[-1].id or 0
        tx.channels.set_after_event(newest)
    for channel in channels:
        channel.after_event = max(channel.after_event, newest)
    return True


def _wants(channel: Channel, job: Job, topic: Topic) -> bool:
    return (
        channel.active
        and topic in channel.topics
        and channel.member_id == job.member_id
        and channel.job_id in (None, job.id)
    )


def _topic(event: Event) -> Topic | None:
    if event.kind == "job.queued" and event.data.get("old") in ("running", "leased"):
        return Topic.HANDED_OFF
    if event.kind == "job.running":
        return Topic.STARTED
    return {"job.failed": Topic.FAILED, "job.succeeded": Topic.FINISHED}.get(event.kind)


def _add_message(tx: Transaction, channel: Channel, job: Job, topic: Topic, event: Event) -> None:
    """Add the message of an event.

    A hand-off joins the one that is still waiting. Only a job's first start gets a message.
    """
    text = _text(topic, job, event)
    facts = {
        "job": job.id,
        "name": job.name,
        "step": job.head_step,
        "total_steps": job.total_steps,
        "reason": event.reason,
    }
    if topic is Topic.STARTED and _is_restart(tx, event, job):
        return
    if topic is Topic.HANDED_OFF:
        waiting = tx.deliveries.untried(channel.id, topic, job.id)
        if waiting is not None:
            waiting.text += f"\n{text}"
            waiting.body["data"]["count"] += 1
            tx.deliveries.save(waiting)
            return
        facts["count"] = 1
    delivery = _delivery(channel, f"event:{event.id}", topic, f"{_WORDS[topic]}: {job.name}", text, facts, event.at)
    delivery.next_at = event.at + (DIGEST_S if topic is Topic.HANDED_OFF else 0.0)
    tx.deliveries.add(delivery)


def _text(topic: Topic, job: Job, event: Event) -> str:
    if topic is Topic.STARTED:
        return f"The job is running ({event.reason})."
    if topic is Topic.HANDED_OFF:
        return f"Handed off at step {job.head_step} of {job.total_steps}: {event.reason}."
    if topic is Topic.FAILED:
        return f"The job failed: {event.reason}"
    return _done(job)


def _done(job: Job) -> str:
    if job.is_chat:
        return "The session is over, and its machine is free."
    if job.is_export:
        return "The export is checked, and its files are in the store."
    if job.is_evaluation:
        return "The base model and the adapter have answered all prompts. The report is ready."
    if job.message:
        return f"The job {job.message}. The adapter is ready."
    return f"All {job.total_steps} steps are complete. The adapter is ready."


_WORDS = {
    Topic.STARTED: "Running",
    Topic.HANDED_OFF: "Handed off",
    Topic.QUOTA_LOW: "Quota low",
    Topic.STALLED: "Stalled",
    Topic.NEEDS_PERSON: "Action needed",
    Topic.FAILED: "Failed",
    Topic.FINISHED: "Succeeded",
}


def _is_restart(tx: Transaction, event: Event, job: Job) -> bool:
    """Whether the job had run before this event."""
    if job.fence <= 1 or event.data.get("old") != "leased":
        return False
    earlier = tx.events.after(0, job_id=job.id, limit=50)
    return any(e.kind == "job.running" and (e.id or 0) < (event.id or 0) for e in earlier)


def _delivery(
    channel: Channel, key: str, topic: str, title: str, text: str, facts: dict[str, Any], now: float
) -> Delivery:
    stamp = datetime.fromtimestamp(now, UTC).isoformat()
    return Delivery(
        id=new_id("message", now),
        channel_id=channel.id,
        key=key,
        topic=str(topic),
        title=title,
        text=text,
        body={"type": f"trainhop.{topic}", "timestamp": stamp, "data": facts | {"title": title, "text": text}},
        next_at=now,
        created_at=now,
    )


def _send(context: NotificationContext, channel: Channel, delivery: Delivery, *, last: bool = False) -> None:
    now = context.ctx.clock.now()
    delivery.attempts += 1
    delivery.body["data"]["text"] = delivery.text
    with context.ctx.uow() as tx:
        owner = tx.members.get(channel.member_id)
    anywhere = owner is not None and owner.role is Role.ADMIN
    is_gone = False
    try:
        address = json.loads(context.ctx.vault.open(channel.sealed))
        context.notifier.send(channel.kind, address["url"], address["secret"], delivery, now, anywhere=anywhere)
    except (NotSent, VaultError) as error:
        is_gone = isinstance(error, NotSent) and error.final
        final = last or is_gone or isinstance(error, VaultError) or delivery.attempts > len(RETRY_S)
        delivery.detail = str(error)
        delivery.state = DeliveryState.FAILED if final else DeliveryState.PENDING
        delivery.next_at = now if final else now + RETRY_S[delivery.attempts - 1]
    else:
        delivery.state, delivery.sent_at, delivery.detail = DeliveryState.SENT, now, ""
    with context.ctx.uow() as tx:
        tx.deliveries.save(delivery)
        if is_gone:
            tx.channels.set_active(channel.id, False)


# --- alerts that do not come from an event -------------------------------------------------------------


def check_alerts(context: NotificationContext) -> None:
    """Write down messages about stalled jobs, quotas that run out, and accounts that need their owner."""
    with context.ctx.uow() as tx:
        active = [c for c in tx.channels.all() if c.active]
    if not active:
        return
    alerts = [*_stalled(context, active), *_accounts(context, active)]
    if alerts:
        with context.ctx.uow() as tx:
            for alert in alerts:
                tx.deliveries.add(alert)


def _stalled(context: NotificationContext, known: list[Channel]) -> Iterator[Delivery]:
    now = context.ctx.clock.now()
    with context.ctx.uow() as tx:
        leases = [lease for lease in tx.leases.live() if lease.started_at is not None]
    for lease in leases:
        if now - (lease.started_at or now) < STALLED_S:
            continue
        with context.ctx.uow() as tx:
            job = tx.jobs.get(lease.job_id)
            head = tx.checkpoints.get(job.id, job.head) if job and job.head else None
        since = max(lease.started_at or 0.0, head.created_at if head else 0.0)
        if job is None or now - since < STALLED_S:
            continue
        minutes = round((now - since) / 60)
        words = f"No new checkpoint for {minutes} minutes, at step {lease.step} of {job.total_steps}."
        facts = {"job": job.id, "name": job.name, "step": lease.step, "minutes": minutes}
        for one in known:
            if _wants(one, job, Topic.STALLED):
                key = f"stalled:{lease.id}:{(job.head or '')[:16]}"
                yield _delivery(one, key, Topic.STALLED, f"Stalled: {job.name}", words, facts, now)


def _accounts(context: NotificationContext, known: list[Channel]) -> Iterator[Delivery]:
    now = context.ctx.clock.now()
    with context.ctx.uow() as tx:
        owned_by = {a.id: a for a in tx.accounts.all() if a.member_id in {c.member_id for c in known}}
    for place in capacity.list_capacity(context.ctx, list(owned_by.values())):
        account = owned_by[place.account_id]
        facts = {"account": account.name, "provider": account.provider}
        for one in (c for c in known if c.member_id == account.member_id and c.job_id is None):
            if account.problem and Topic.NEEDS_PERSON in one.topics:
                key = f"person:{account.id}:{account.problem[:60]}"
                yield _delivery(
                    one, key, Topic.NEEDS_PERSON, f"Action needed: {account.name}", account.problem, facts, now
                )
            if place.hours_left is not None and place.hours_left < QUOTA_LOW_H and Topic.QUOTA_LOW in one.topics:
                words = f"{account.name} has {place.hours_left:.1f} h of quota left."
                key = f"quota:{account.id}:{int(place.refresh_at or now // 86_400)}"
                yield _delivery(one, key, Topic.QUOTA_LOW, f"Quota low: {account.name}", words, facts, now)
