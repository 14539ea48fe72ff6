"""How fast the dispatcher makes leases durable on databases of several sizes; a part of `benchmarks.orchestrator`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.bench_server import Coroutines
from benchmarks.tiny_job import say
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.model import Account, Job
from orchestrator.ports.providers import Capacity
from orchestrator.providers.registry import Registry
from orchestrator.services.dispatch import dispatch

CLAIM_SECONDS = 6.0


def claims(folder: Path, rows: int) -> float:
    """Leases made durable per second by the product's dispatcher, with `rows` jobs of which 10,000 are queued."""
    say(f"claims at {rows} rows ...")
    app = build(Settings(data_dir=folder), providers=Registry.of({"local": Nowhere()}))
    try:
        fill(app, rows)
        return round(_claim_for(app, CLAIM_SECONDS), 1)
    finally:
        app.close()


class Nowhere(Coroutines):
    """Takes every launch and does nothing with it."""

    def __init__(self) -> None: ...

    def room(self, account: Account) -> Capacity:
        return Capacity(slots=1_000_000, session_s=3600.0)

    def launch(self, request: Any) -> str:
        return str(request.lease_id)


def fill(app: App, rows: int) -> None:
    with app.context.uow() as tx:
        member = tx.members()[0].id
        now = app.context.clock.now()
        spec = {"base_model": "org/tiny", "global_batch_size": 8, "sequence_len": 64}
        sample = Job(
            id="job-0",
            member_id=member,
            name="filler",
            spec=spec,
            total_steps=1,
            priority=0,
            deadline=None,
            created_at=now,
            updated_at=now,
        )
        tx.add_job(sample)
    queued = 10_000
    columns = ", ".join(c for c in _columns(app) if c not in ("id", "state"))
    copy = text(
        f"""WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows - 1})
        INSERT INTO jobs (id, state, {columns})
        SELECT printf('job-%09d', i), CASE WHEN i <= {rows - queued} THEN 'succeeded' ELSE 'queued' END, {columns}
        FROM n, jobs WHERE jobs.id = 'job-0'"""
    )
    with app.engine.connect() as connection:
        connection.execute(copy)
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _columns(app: App) -> list[str]:
    with app.engine.connect() as connection:
        return [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)")]


def _claim_for(app: App, seconds: float) -> float:
    claimed, began = 0, time.monotonic()
    quiet: Callable[[Callable[[], None]], None] = lambda _: None  # noqa: E731
    context = app.context.__class__(**{**vars(app.context), "spawn": quiet})
    while time.monotonic() - began < seconds:
        found = dispatch(context)
        claimed += found
        if not found:
            break
    return claimed / (time.monotonic() - began)
