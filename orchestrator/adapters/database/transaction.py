"""What the services may ask of an open database transaction, on either database."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.checkpoints import CheckpointRows
from orchestrator.adapters.database.compiled_sql import Statement, Upsert
from orchestrator.adapters.database.datasets import DatasetRows
from orchestrator.adapters.database.mapper import (
    ACCOUNTS,
    EVENTS,
    IS_LIVE,
    JOBS,
    LEASES,
    STORES,
    TOKENS,
)
from orchestrator.adapters.database.members import MemberRows
from orchestrator.adapters.database.notebooks import ClaimRows
from orchestrator.adapters.database.retention import AgedRows
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Account, Event, Job, Lease, StepTime
from orchestrator.ports.repository import StoreConfig, TokenInfo
from worker.shared.messages import MetricRow, Reading, Sample

_JOBS_TO_COMPARE = 200
_EVENT_LOCK = 7_265_746
"""Any constant: on PostgreSQL events are numbered under this advisory lock, so that ids become visible in order."""

_queued = Statement(
    JOBS.select.where(
        tables.jobs.c.state == text("'queued'"),
        tables.jobs.c.member_id == bindparam("member"),
        tables.jobs.c.not_before <= bindparam("now"),
    )
    .order_by(tables.jobs.c.priority.desc(), tables.jobs.c.id)
    .limit(bindparam("most"))
)
_any_queued = Statement(select(tables.jobs.c.id).where(tables.jobs.c.state == text("'queued'")).limit(1))
_due = Statement(
    JOBS.select.where(
        tables.jobs.c.state == text("'queued'"),
        tables.jobs.c.deadline.is_not(None),
        tables.jobs.c.not_before <= bindparam("now"),
    )
    .order_by(tables.jobs.c.deadline)
    .limit(bindparam("most"))
)
_live_lease = Statement(LEASES.select.where(IS_LIVE))
_lease_of_job = Statement(LEASES.select.where(IS_LIVE, tables.leases.c.job_id == bindparam("job")))
_lock_job_of = Statement(
    select(tables.jobs.c.id)
    .where(
        tables.jobs.c.id
        == select(tables.leases.c.job_id).where(tables.leases.c.id == bindparam("id")).scalar_subquery()
    )
    .with_for_update()
)
_uncollected = Statement(LEASES.select.where(tables.leases.c.collected_at.is_(None), ~IS_LIVE))
_this_lease = update(tables.leases).where(tables.leases.c.id == bindparam("lease"))
_note_external_id = Statement(_this_lease.values(external_id=bindparam("external")))
_note_collected = Statement(_this_lease.values(collected_at=bindparam("at")))
_member_ids = Statement(select(tables.members.c.id))
_accounts = Statement(ACCOUNTS.select.order_by(tables.accounts.c.created_at))
_counts = Statement(
    select(tables.leases.c.member_id, tables.leases.c.account_id, func.count())
    .where(IS_LIVE)
    .group_by(tables.leases.c.member_id, tables.leases.c.account_id)
)
_add_event = Statement(
    insert(tables.events).values({c.name: bindparam(c.name, type_=c.type) for c in tables.events.c if c.name != "id"})
)
_number_events = Statement(select(func.pg_advisory_xact_lock(_EVENT_LOCK)))
_this_object = and_(tables.store_objects.c.store == bindparam("of"), tables.store_objects.c.key == bindparam("at"))
_object_id = Statement(select(tables.store_objects.c.external_id).where(_this_object))
_forget_object = Statement(
    delete(tables.store_objects).where(_this_object, tables.store_objects.c.external_id == bindparam("id"))
)
_metrics, _missing_metrics = Upsert(tables.metrics, ("value", "fence", "at")), Upsert(tables.metrics)
_samples, _readings = Upsert(tables.samples, ("text", "at")), Upsert(tables.readings)
_objects = Upsert(tables.store_objects)


class SqlTransaction(AgedRows, ClaimRows, CheckpointRows, DatasetRows, MemberRows):
    """Implements `persistence.Transaction` over one connection; events are written last, by `flush`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._events: list[Event] = []

    def flush(self) -> None:
        """Write what was noted; called once, right before the commit."""
        if not self._events:
            return
        if self.connection.dialect.name == "postgresql":
            _number_events.run(self.connection, {})
        _add_event.run(self.connection, *({k: v for k, v in EVENTS.dump(e).items() if k != "id"} for e in self._events))
        self._events.clear()

    # jobs

    def job(self, job_id: str) -> Job | None:
        return JOBS.get(self.connection, lock=True, id=job_id)

    def add_job(self, job: Job) -> None:
        JOBS.add(self.connection, job)
        self._take_events(job)

    def save_job(self, job: Job) -> None:
        JOBS.save(self.connection, job)
        self._take_events(job)

    def _take_events(self, job: Job) -> None:
        self._events.extend(job.events)
        job.events.clear()

    def typical_step_time(self, base_model: str, tokens_per_step: int) -> StepTime:
        jobs, found = tables.jobs.c, StepTime()
        timed = select(jobs.spec, jobs.gpu_step_s, jobs.host_step_s).where(tables.IS_TIMED)
        for spec, gpu_s, host_s in self.connection.execute(timed.order_by(jobs.id.desc()).limit(_JOBS_TO_COMPARE)):
            same_size = spec["global_batch_size"] * spec["sequence_len"] == tokens_per_step
            if spec["base_model"] == base_model and same_size:
                found = StepTime(gpu_s=found.gpu_s or gpu_s, host_s=found.host_s or host_s)
        return found

    def typical_checkpoint_bytes(self, base_model: str, lora_r: int) -> int | None:
        jobs, heads = tables.jobs.c, tables.checkpoints.c
        saved = select(jobs.spec, heads.size).where(heads.job_id == jobs.id, heads.sha256 == jobs.head)
        for spec, size in self.connection.execute(saved.order_by(jobs.id.desc()).limit(_JOBS_TO_COMPARE)):
            if (spec["base_model"], spec["lora_r"]) == (base_model, lora_r):
                return size
        return None

    def has_queued(self) -> bool:
        return bool(_any_queued.rows(self.connection))

    def queued(self, limit_per_member: int, now: float) -> list[Job]:
        most = {"now": now, "most": limit_per_member}
        rows = _due.rows(self.connection, most)
        for (member,) in _member_ids.rows(self.connection):
            rows += _queued.rows(self.connection, most | {"member": member})
        return list({job.id: job for job in map(JOBS.load, rows)}.values())

    # leases

    def lease(self, lease_id: str) -> Lease | None:
        if self.connection.dialect.name == "postgresql":
            # Job before lease, everywhere: two transactions that lock them in different orders would wait for ever.
            _lock_job_of.run(self.connection, {"id": lease_id})
        return LEASES.get(self.connection, lock=True, id=lease_id)

    def live_lease(self, job_id: str) -> Lease | None:
        row = _lease_of_job.first(self.connection, {"job": job_id})
        return None if row is None else LEASES.load(row)

    def live_leases(self) -> list[Lease]:
        return [LEASES.load(row) for row in _live_lease.rows(self.connection)]

    def uncollected_leases(self) -> list[Lease]:
        return [LEASES.load(row) for row in _uncollected.rows(self.connection)]

    def leases_of(self, job_id: str) -> list[Lease]:
        return LEASES.where(self.connection, tables.leases.c.job_id == job_id)

    def leases_on(self, account_id: str, limit: int) -> list[Lease]:
        newest = LEASES.select.where(tables.leases.c.account_id == account_id).order_by(tables.leases.c.id.desc())
        return [LEASES.load(row) for row in self.connection.execute(newest.limit(limit))]

    def live_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        by_member: dict[str, int] = {}
        by_account: dict[str, int] = {}
        for member, account, count in _counts.rows(self.connection):
            by_member[member] = by_member.get(member, 0) + count
            by_account[account] = by_account.get(account, 0) + count
        return by_member, by_account

    def add_lease(self, lease: Lease) -> None:
        try:
            LEASES.add(self.connection, lease)
        except IntegrityError as error:
            raise ConflictError(f"job {lease.job_id} already has a live lease") from error

    def save_lease(self, lease: Lease) -> None:
        LEASES.save(self.connection, lease)

    def note_external_id(self, lease_id: str, external_id: str) -> None:
        _note_external_id.run(self.connection, {"lease": lease_id, "external": external_id})

    def note_collected(self, lease_id: str, at: float) -> None:
        _note_collected.run(self.connection, {"lease": lease_id, "at": at})

    # what workers tell

    def add_metrics(
        self, job_id: str, lease: Lease, rows: Sequence[MetricRow], at: float, *, replace: bool = True
    ) -> None:
        values = [
            {"job_id": job_id, "name": name, "step": row.step, "value": value, "fence": lease.fence, "at": at}
            for row in rows
            for name, value in row.values.items()
            if not math.isnan(value)  # SQLite keeps a NaN as NULL, which the column refuses
        ]
        if values:
            (_metrics if replace else _missing_metrics).run(self.connection, *values)

    def add_samples(self, job_id: str, samples: Sequence[Sample], at: float) -> None:
        values = [
            {
                "job_id": job_id,
                "step": s.step,
                "prompt_sha256": hashlib.sha256(s.prompt.encode()).hexdigest(),
                "prompt": s.prompt,
                "text": s.text.replace("\0", "\ufffd"),  # a model may say it, PostgreSQL cannot keep it
                "at": at,
            }
            for s in samples
        ]
        if values:
            _samples.run(self.connection, *values)

    def add_reading(self, lease_id: str, at: float, step: int, reading: Reading) -> None:
        values = {"lease_id": lease_id, "at": at, "step": step, "reading": reading.model_dump(exclude_none=True)}
        _readings.run(self.connection, values)

    def forget_records(self, job_id: str) -> None:
        leases = select(tables.leases.c.id).where(tables.leases.c.job_id == job_id)
        channels = select(tables.channels.c.id).where(tables.channels.c.job_id == job_id)
        for gone in (
            delete(tables.metrics).where(tables.metrics.c.job_id == job_id),
            delete(tables.samples).where(tables.samples.c.job_id == job_id),
            delete(tables.readings).where(tables.readings.c.lease_id.in_(leases)),
            delete(tables.deliveries).where(tables.deliveries.c.channel_id.in_(channels)),
            delete(tables.channels).where(tables.channels.c.job_id == job_id),
        ):
            self.connection.execute(gone)

    # accounts and tokens

    def account(self, account_id: str) -> Account | None:
        return ACCOUNTS.get(self.connection, id=account_id)

    def accounts(self) -> list[Account]:
        return [ACCOUNTS.load(row) for row in _accounts.rows(self.connection)]

    def add_account(self, account: Account) -> None:
        try:
            ACCOUNTS.add(self.connection, account)
        except IntegrityError as error:
            raise ConflictError(
                f"the name {account.name} is taken, or this member already has an account at {account.provider}: "
                "one account per member and provider"
            ) from error

    def save_account(self, account: Account) -> None:
        ACCOUNTS.save(self.connection, account)

    def delete_account(self, account_id: str) -> None:
        self.connection.execute(delete(tables.accounts).where(tables.accounts.c.id == account_id))

    def add_token(self, token: TokenInfo, token_hash: str) -> None:
        self.connection.execute(insert(tables.tokens), [TOKENS.dump(token) | {"hash": token_hash}])

    def token(self, token_hash: str) -> TokenInfo | None:
        found = TOKENS.where(self.connection, tables.tokens.c.hash == token_hash)
        return found[0] if found else None

    def tokens(self, member_id: str | None = None) -> list[TokenInfo]:
        conditions = [tables.tokens.c.member_id == member_id] if member_id else []
        return TOKENS.where(self.connection, *conditions, order=tables.tokens.c.created_at)

    def delete_token(self, token_id: str) -> None:
        self.connection.execute(delete(tables.tokens).where(tables.tokens.c.id == token_id))

    # stores

    def store_configs(self) -> list[StoreConfig]:
        return STORES.where(self.connection, order=tables.stores.c.created_at)

    def put_store_config(self, config: StoreConfig) -> None:
        if config.current:
            self.connection.execute(update(tables.stores).values(current=False))
        self.connection.execute(delete(tables.stores).where(tables.stores.c.name == config.name))
        STORES.add(self.connection, config)

    def store_object(self, store: str, key: str) -> str | None:
        row = _object_id.first(self.connection, {"of": store, "at": key})
        return None if row is None else row[0]

    def claim_store_object(self, store: str, key: str, external_id: str) -> str:
        _objects.run(self.connection, {"store": store, "key": key, "external_id": external_id})
        return self.store_object(store, key) or external_id

    def forget_store_object(self, store: str, key: str, external_id: str) -> None:
        _forget_object.run(self.connection, {"of": store, "at": key, "id": external_id})

    def store_keys(self, store: str, prefix: str) -> list[str]:
        table = tables.store_objects.c
        found = select(table.key).where(table.store == store, table.key.startswith(prefix, autoescape=True))
        return [key for (key,) in self.connection.execute(found)]

    def forget_store_folders(self, store: str) -> None:
        table = tables.store_objects
        self.connection.execute(delete(table).where(table.c.store == store, table.c.key.endswith("/")))

    def kept_in_store(self, store: str) -> int:
        kept = (CheckpointState.OFFERED, CheckpointState.COMMITTED)
        lying = tables.checkpoints.c.store == store
        counts = (
            select(func.count()).select_from(tables.checkpoints).where(lying, tables.checkpoints.c.state.in_(kept)),
            select(func.count()).select_from(tables.jobs).where(tables.jobs.c.adapter_store == store),
        )
        return sum(self.connection.execute(count).scalar_one() for count in counts)

    # idempotency, events

    def remembered(self, member_id: str, key: str) -> tuple[str, dict[str, Any]] | None:
        table = tables.remembered.c
        statement = select(table.request_hash, table.answer).where(table.member_id == member_id, table.key == key)
        row = self.connection.execute(statement).first()
        return None if row is None else (row.request_hash, row.answer)

    def remember(self, member_id: str, key: str, request_hash: str, answer: dict[str, Any], at: float) -> None:
        values = {"member_id": member_id, "key": key, "request_hash": request_hash, "answer": answer, "at": at}
        try:
            self.connection.execute(insert(tables.remembered), [values])
        except IntegrityError as error:
            raise ConflictError("a request with this Idempotency-Key is being handled") from error

    def forget_remembered(self, before: float) -> None:
        self.connection.execute(delete(tables.remembered).where(tables.remembered.c.at < before))

    def events(self, *, after: int, job_id: str | None, limit: int) -> list[Event]:
        table = tables.events.c
        conditions = [table.id > after] + ([table.job_id == job_id] if job_id else [])
        statement = EVENTS.select.where(*conditions).order_by(table.id).limit(limit)
        return [EVENTS.load(row) for row in self.connection.execute(statement)]
