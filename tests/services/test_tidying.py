"""What is forgotten by age, and what never is."""

from __future__ import annotations

from sqlalchemy import Engine, text

from orchestrator.bootstrap import App
from orchestrator.domain.accounts import Role, Token
from orchestrator.domain.notifications import Channel, ChannelKind, Delivery, DeliveryState
from orchestrator.entrypoints.background.scheduler import Ticker
from orchestrator.services.context import new_id
from orchestrator.services.retention import DAY_S, tidy
from tests.helpers.world import World
from tests.providers.kernels import until
from tests.services.test_deletion import trained
from worker.shared.messages import Reading


def ids(engine: Engine, table: str, column: str = "id") -> list[str]:
    with engine.begin() as connection:
        return sorted(connection.execute(text(f"SELECT {column} FROM {table}")).scalars())


def test_tokens_go_a_month_after_they_expired(world: World, engine: Engine) -> None:
    """Guard: without `tokens.delete_expired` every login of a browser stayed for ever."""
    now = world.clock.now()
    until = {"for-ever": None, "good": now + 1, "just-over": now - 29 * DAY_S, "long-over": now - 31 * DAY_S}
    with world.ctx.uow() as tx:
        for name, expires_at in until.items():
            made = {"name": name, "role": Role.MEMBER, "created_at": 0.0, "expires_at": expires_at}
            tx.tokens.add(Token(id=name, member_id="alice", **made), name)
    tidy(world.ctx)
    assert ids(engine, "tokens") == ["for-ever", "good", "just-over"]


def test_messages_go_a_month_after_they_were_made(world: World, engine: Engine) -> None:
    """Guards: without `deliveries.delete_old` all stayed; without `is_over` one that was still to go out never did."""
    now = world.clock.now()
    kept = {"id": "c", "member_id": "alice", "job_id": None, "kind": ChannelKind.WEBHOOK, "label": "l", "topics": []}
    with world.ctx.uow() as tx:
        tx.channels.add(Channel(**kept, after_event=0, created_at=now, sealed="s"))
    states = {"new": (1, DeliveryState.SENT), "old": (31, DeliveryState.SENT), "failed": (31, DeliveryState.FAILED)}
    states |= {"waits": (31, DeliveryState.PENDING)}
    for name, (days, state) in states.items():
        said = {"topic": "failed", "title": "t", "text": "t", "body": {"data": {}}, "next_at": now}
        at = now - days * DAY_S
        with world.ctx.uow() as tx:
            tx.deliveries.add(Delivery(id=name, channel_id="c", key=name, state=state, created_at=at, **said))
    tidy(world.ctx)
    assert ids(engine, "deliveries") == ["new", "waits"]


def test_readings_of_old_sessions_go_and_curves_stay(world: World, engine: Engine) -> None:
    """Guards: without `reports.delete_readings` they stayed; without the `while` two of five stayed until the next
    round."""
    job = trained(world)
    now = world.clock.now()
    old, young = new_id("lease", now - 91 * DAY_S), new_id("lease", now - 89 * DAY_S)
    with world.ctx.uow() as tx:
        for lease in (old, young):
            for n in range(5):
                tx.reports.add_reading(lease, now + n, n, Reading())
    tidy(world.ctx, at_once=3)
    assert ids(engine, "readings", "lease_id") == [young] * 5
    world.clock.tick(1000 * DAY_S)
    tidy(world.ctx)
    assert ids(engine, "readings", "lease_id") == []
    assert job in ids(engine, "metrics", "job_id")
    assert job in ids(engine, "events", "job_id")


def test_the_server_tidies_by_itself(sqlite_app: App) -> None:
    """Guard: without its line in `Ticker` nothing ever went."""
    ctx = sqlite_app.context
    made = {"name": "old", "role": Role.MEMBER, "created_at": 0.0, "expires_at": ctx.clock.now() - 31 * DAY_S}
    with ctx.uow() as tx:
        tx.tokens.add(Token(id="old", member_id=tx.members.all()[0].id, **made), "old")
    ticking = Ticker(sqlite_app, tidy_every_s=0.01)
    ticking.start()
    try:
        until(lambda: "old" not in ids(sqlite_app.engine, "tokens"))
    finally:
        ticking.stop()
