"""Telling people: who wants to know what, what happened since, and messages that are tried until they arrive."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.model import Event, Job, Role
from orchestrator.ports.notifications import (
    Carrier,
    Channel,
    ChannelKind,
    ChannelRepository,
    Delivery,
    DeliveryState,
    NotSent,
    Topic,
)
from orchestrator.ports.providers import Context, VaultError
from orchestrator.services import dispatch
from orchestrator.services.ids import new_id
from orchestrator.services.jobs import Actor, owned

DIGEST_S = 1_800.0
"""Hand-offs within this time of the first one are told in one message."""

STALLED_S = 1_800.0
"""A running job without a new safe point for this long is stalled."""

QUOTA_LOW_H = 2.0
RETRY_S = (10.0, 60.0, 300.0, 1_800.0, 7_200.0)
EVENTS_AT_ONCE = 500
SENT_AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class NotificationContext:
    """What notifications are made with."""

    ctx: Context
    book: ChannelRepository
    carrier: Carrier


def add_channel(
    office: NotificationContext, actor: Actor, *, url: str, topics: list[Topic], job_id: str | None = None
) -> tuple[Channel, str | None]:
    """A new channel of the actor's, and the secret of a webhook, which is shown this once.

    Only an admin's may lie in the server's own network, where much listens that was never meant for members.
    """
    kind, label = office.carrier.check(url, anywhere=actor.role is Role.ADMIN)
    if job_id is not None:
        with office.ctx.uow() as tx:
            owned(tx, actor, job_id)
    now = office.ctx.clock.now()
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() if kind is ChannelKind.WEBHOOK else None
    channel = Channel(
        id=new_id("channel", now),
        member_id=actor.member_id,
        job_id=job_id,
        kind=kind,
        label=label,
        topics=[str(topic) for topic in topics],
        after_event=office.book.newest_event(),
        created_at=now,
        sealed=office.ctx.vault.seal(json.dumps({"url": url.strip(), "secret": secret or ""})),
    )
    office.book.add_channel(channel)
    return channel, secret


def channels(office: NotificationContext, actor: Actor) -> list[Channel]:
    """The actor's own channels."""
    return office.book.channels(actor.member_id)


def channel(office: NotificationContext, actor: Actor, channel_id: str) -> Channel:
    """One of the actor's channels; others' do not exist for them."""
    found = next((c for c in channels(office, actor) if c.id == channel_id), None)
    if found is None:
        raise NotFoundError(f"there is no channel {channel_id}")
    return found


def remove_channel(office: NotificationContext, actor: Actor, channel_id: str) -> None:
    """Forget a channel, its address and its log."""
    office.book.remove_channel(channel(office, actor, channel_id).id)


def send_test(office: NotificationContext, actor: Actor, channel_id: str) -> Delivery:
    """Send one message now, and say how that went; a channel that was given up is used again."""
    found = channel(office, actor, channel_id)
    now = office.ctx.clock.now()
    made = _delivery(found, f"test:{now}", "test", "Trainhop: test", "If you can read this, messages arrive.", {}, now)
    office.book.note([made], None)
    _send(office, found, made, last=True)
    if made.state is DeliveryState.SENT and not found.active:
        office.book.set_active(found.id, True)
    return made


# --- the round that the ticker makes ---------------------------------------------------------------------


def deliver_due(office: NotificationContext) -> int:
    """Turn what happened into messages and send those that are due; returns how many went out."""
    known = office.book.channels()
    if not known:
        return 0
    _take_news(office, known)
    now = office.ctx.clock.now()
    by_id = {c.id: c for c in known}
    due = [d for d in office.book.due(now, SENT_AT_ONCE) if d.channel_id in by_id]
    for delivery in due:
        _send(office, by_id[delivery.channel_id], delivery)
    return sum(d.state is DeliveryState.SENT for d in due)


def _take_news(office: NotificationContext, known: list[Channel]) -> None:
    while found := office.book.events_after(min(c.after_event for c in known), EVENTS_AT_ONCE):
        made: list[Delivery] = []
        for event, job in found:
            topic = _topic(event)
            if job is None or topic is None:
                continue
            for one in known:
                if (event.id or 0) > one.after_event and _wants(one, job, topic):
                    made += _message(office, one, job, topic, event, made)
        newest = found[-1][0].id or 0
        office.book.note(made, newest)
        for one in known:
            one.after_event = max(one.after_event, newest)


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


def _message(
    office: NotificationContext, channel: Channel, job: Job, topic: Topic, event: Event, made: list[Delivery]
) -> list[Delivery]:
    """The message of an event; a hand-off joins the one that waits for its kind, a later start is no news."""
    if topic is Topic.STARTED:
        if job.fence > 1 and event.data.get("old") == "leased" and _restarted(office, event, job):
            return []
        words = f"It runs ({event.reason})."
    elif topic is Topic.HANDED_OFF:
        words = f"At step {job.head_step} of {job.total_steps}: {event.reason}."
        waiting = next(
            (d for d in made if d.channel_id == channel.id and d.topic == topic and d.body["data"]["job"] == job.id),
            None,
        )
        waiting = waiting or office.book.digest(channel.id, topic, job.id)
        if waiting is not None:
            waiting.text += f"\n{words}"
            waiting.body["data"]["count"] += 1
            if waiting not in made:
                office.book.save(waiting)
            return []
    elif topic is Topic.FAILED:
        words = f"It failed: {event.reason}"
    else:
        words = f"All {job.total_steps} steps are done; the adapter is ready."
    facts = {
        "job": job.id,
        "name": job.name,
        "step": job.head_step,
        "total_steps": job.total_steps,
        "reason": event.reason,
    }
    if topic is Topic.HANDED_OFF:
        facts["count"] = 1
    one = _delivery(channel, f"event:{event.id}", topic, f"{_WORDS[topic]}: {job.name}", words, facts, event.at)
    one.next_at = event.at + (DIGEST_S if topic is Topic.HANDED_OFF else 0.0)
    return [one]


_WORDS = {
    Topic.STARTED: "Training",
    Topic.HANDED_OFF: "Handed over",
    Topic.QUOTA_LOW: "Quota low",
    Topic.STALLED: "Stalled",
    Topic.NEEDS_PERSON: "You are needed",
    Topic.FAILED: "Failed",
    Topic.FINISHED: "Done",
}


def _restarted(office: NotificationContext, event: Event, job: Job) -> bool:
    """Whether the job had run before this event."""
    with office.ctx.uow() as tx:
        earlier = tx.events(after=0, job_id=job.id, limit=50)
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


def _send(office: NotificationContext, channel: Channel, delivery: Delivery, *, last: bool = False) -> None:
    now = office.ctx.clock.now()
    delivery.attempts += 1
    delivery.body["data"]["text"] = delivery.text
    try:
        address = json.loads(office.ctx.vault.open(channel.sealed))
        anywhere = _is_admins(office, channel)
        office.carrier.send(channel.kind, address["url"], address["secret"], delivery, now, anywhere=anywhere)
    except (NotSent, VaultError) as error:
        final = last or isinstance(error, VaultError) or error.final or delivery.attempts > len(RETRY_S)
        delivery.detail = str(error)
        delivery.state = DeliveryState.FAILED if final else DeliveryState.PENDING
        delivery.next_at = now if final else now + RETRY_S[delivery.attempts - 1]
        if isinstance(error, NotSent) and error.final:
            office.book.set_active(channel.id, False)
    else:
        delivery.state, delivery.sent_at, delivery.detail = DeliveryState.SENT, now, ""
    office.book.save(delivery)


def _is_admins(office: NotificationContext, channel: Channel) -> bool:
    with office.ctx.uow() as tx:
        owner = tx.member(channel.member_id)
    return owner is not None and owner.role is Role.ADMIN


# --- what no event tells ---------------------------------------------------------------------------------


def check_alerts(office: NotificationContext) -> None:
    """Note what nobody announces: jobs without a new safe point, quotas that run out, accounts that need their owner."""
    known = [c for c in office.book.channels() if c.active]
    if not known:
        return
    made = [*_stalled(office, known), *_accounts(office, known)]
    if made:
        office.book.note(made, None)


def _stalled(office: NotificationContext, known: list[Channel]) -> Iterator[Delivery]:
    now = office.ctx.clock.now()
    with office.ctx.uow() as tx:
        leases = [lease for lease in tx.live_leases() if lease.started_at is not None]
    for lease in leases:
        if now - (lease.started_at or now) < STALLED_S:
            continue
        with office.ctx.uow() as tx:
            job = tx.job(lease.job_id)
            head = tx.checkpoint(job.id, job.head) if job and job.head else None
        since = max(lease.started_at or 0.0, head.created_at if head else 0.0)
        if job is None or now - since < STALLED_S:
            continue
        minutes = round((now - since) / 60)
        words = f"No new safe point for {minutes} minutes, at step {lease.step} of {job.total_steps}."
        facts = {"job": job.id, "name": job.name, "step": lease.step, "minutes": minutes}
        for one in known:
            if _wants(one, job, Topic.STALLED):
                key = f"stalled:{lease.id}:{(job.head or '')[:16]}"
                yield _delivery(one, key, Topic.STALLED, f"Stalled: {job.name}", words, facts, now)


def _accounts(office: NotificationContext, known: list[Channel]) -> Iterator[Delivery]:
    now = office.ctx.clock.now()
    with office.ctx.uow() as tx:
        owned_by = {a.id: a for a in tx.accounts() if a.member_id in {c.member_id for c in known}}
    for place in dispatch.list_capacity(office.ctx, list(owned_by.values())):
        account = owned_by[place.account_id]
        facts = {"account": account.name, "provider": account.provider}
        for one in (c for c in known if c.member_id == account.member_id and c.job_id is None):
            if account.problem and Topic.NEEDS_PERSON in one.topics:
                key = f"person:{account.id}:{account.problem[:60]}"
                yield _delivery(
                    one, key, Topic.NEEDS_PERSON, f"You are needed: {account.name}", account.problem, facts, now
                )
            if place.hours_left is not None and place.hours_left < QUOTA_LOW_H and Topic.QUOTA_LOW in one.topics:
                words = f"{place.hours_left:.1f} h of quota left at {account.name}."
                key = f"quota:{account.id}:{int(place.refresh_at or now // 86_400)}"
                yield _delivery(one, key, Topic.QUOTA_LOW, f"Quota low: {account.name}", words, facts, now)
