"""Durable writes without HTTP: the dispatcher's claims on databases of several sizes, and small rows from many
threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.bench_server import Coroutines
from benchmarks.tiny_job import say
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account
from orchestrator.domain.jobs import Job
from orchestrator.ports.providers import Capacity
from orchestrator.providers.registry import Registry
from orchestrator.services.dispatch import dispatch

CLAIM_SECONDS, WRITE_SECONDS = 6.0, 2.0
WRITERS = 24


def claims(folder: Path, rows: int, seconds: float = CLAIM_SECONDS) -> float:
    """Leases committed per second by the product's dispatcher, with `rows` jobs of which 10,000 are queued."""
    say(f"claims at {rows} rows ...")
    app = build(Settings(data_dir=folder), providers=Registry.of({"local": Nowhere()}))
    try:
        fill(app, rows)
        return round(_claim_for(app, seconds), 1)
    finally:
        app.close()


def small_writes(folder: Path) -> float:
    """Durable transactions of one small row each, per second, by threads that write at the same time."""
    app = build(Settings(data_dir=folder), providers=Registry.of({"local": Nowhere()}))
    until = time.monotonic() + WRITE_SECONDS
    try:
        with app.context.uow() as tx:
            member = tx.members.all()[0].id
        with ThreadPoolExecutor(WRITERS) as pool:
            written = sum(pool.map(lambda writer: _write_until(app, member, writer, until), range(WRITERS)))
        return round(written / WRITE_SECONDS, 1)
    finally:
        app.close()


def _write_until(app: App, member: str, writer: int, until: float) -> int:
    for number in count():
        if time.monotonic() >= until:
            return number
        with app.context.uow() as tx:
            tx.jobs.add(_filler(f"job-{writer}-{number}", member, app.context.clock.now()))
    raise AssertionError


class Nowhere(Coroutines):
    """Accepts every launch and does nothing."""

    def __init__(self) -> None: ...

    def capacity(self, account: Account) -> Capacity:
        return Capacity(slots=1_000_000, session_s=3600.0)

    def launch(self, request: Any) -> str:
        return str(request.lease_id)


def fill(app: App, rows: int) -> None:
    with app.context.uow() as tx:
        tx.jobs.add(_filler("job-0", tx.members.all()[0].id, app.context.clock.now()))
    queued = 10_000
    columns = ", ".join(c for c in _columns(app) if c not in ("id", "state"))
    copy = text(f"""WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows - 1})
        INSERT INTO jobs (id, state, {columns})
        SELECT printf('job-%09d', i), CASE WHEN i <= {rows - queued} THEN 'succeeded' ELSE 'queued' END, {columns}
        FROM n, jobs WHERE jobs.id = 'job-0'""")
    with app.engine.connect() as connection:
        connection.execute(copy)
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _filler(job_id: str, member: str, now: float) -> Job:
    return Job(
        id=job_id,
        member_id=member,
        name="filler",
        spec={"base_model": "org/tiny", "global_batch_size": 8, "sequence_len": 64},
        total_steps=1,
        priority=0,
        deadline=None,
        created_at=now,
        updated_at=now,
    )


def _columns(app: App) -> list[str]:
    with app.engine.connect() as connection:
        return [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)")]


def _claim_for(app: App, seconds: float) -> float:
    claimed, began = 0, time.monotonic()
    quiet: Callable[[Callable[[], None]], None] = lambda _: None  # noqa: E731
    context = app.context.__class__(**{**vars(app.context), "spawn": quiet})
    while time.monotonic() - began < seconds:
        count = dispatch(context)
        claimed += count
        if not count:
            break
    return claimed / (time.monotonic() - began)
