"""The repository of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection, Text, bindparam, cast, delete, insert, select, text

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.comparisons import delete_evaluation
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.export_tables import machine_exports
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.push_tables import pushes
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.adapters.database.tracking_tables import tracked_runs
from orchestrator.domain.jobs import Event, Job, StepTime
from orchestrator.domain.lifecycle import EndReason, JobState

JOBS = Mapper(
    Job,
    tables.jobs,
    enums={"state": JobState, "end_reason": EndReason},
    frozen=("spec", "member_id", "name", "created_at", "cloned_from", "first_step"),
)
_JOBS_TO_COMPARE = 200
_tags, _notes = tables.job_tags, tables.job_notes
_jobs = tables.jobs.c
IS_UNENDED = _jobs.state.in_([state.value for state in JobState if not state.is_final])
_queued = Statement(
    JOBS.select.where(
        _jobs.state == text("'queued'"),
        _jobs.member_id == bindparam("member"),
        _jobs.not_before <= bindparam("now"),
    )
    .order_by(_jobs.priority.desc(), _jobs.id)
    .limit(bindparam("most"))
)
_any_queued = Statement(select(_jobs.id).where(_jobs.state == text("'queued'")).limit(1))
_due = Statement(
    JOBS.select.where(
        _jobs.state == text("'queued'"), _jobs.deadline.is_not(None), _jobs.not_before <= bindparam("now")
    )
    .order_by(_jobs.deadline)
    .limit(bindparam("most"))
)
_member_ids = Statement(select(tables.members.c.id))


class SqlJobRepository(SqlRepository):
    """Implements `ports.repository.jobs.JobRepository`. It collects new events of jobs in `new_events`."""

    def __init__(self, connection: Connection, new_events: list[Event]) -> None:
        super().__init__(connection)
        self._new_events = new_events

    def get(self, job_id: str) -> Job | None:
        return JOBS.get(self._connection, lock=True, id=job_id)

    def get_many(self, job_ids: Iterable[str]) -> dict[str, Job]:
        found = (JOBS.get(self._connection, id=job_id) for job_id in job_ids)
        return {job.id: job for job in found if job is not None}

    def add(self, job: Job) -> None:
        JOBS.add(self._connection, job)
        self._take_events(job)

    def save(self, job: Job) -> None:
        JOBS.save(self._connection, job)
        self._take_events(job)

    def _take_events(self, job: Job) -> None:
        self._new_events.extend(job.events)
        job.events.clear()

    def has_queued(self) -> bool:
        return bool(_any_queued.rows(self._connection))

    def queued(self, limit_per_member: int, now: float) -> list[Job]:
        most = {"now": now, "most": limit_per_member}
        rows = _due.rows(self._connection, most)
        for (member,) in _member_ids.rows(self._connection):
            rows += _queued.rows(self._connection, most | {"member": member})
        return list({job.id: job for job in map(JOBS.load, rows)}.values())

    def unended(self, member_id: str) -> list[Job]:
        return JOBS.where(self._connection, _jobs.member_id == member_id, IS_UNENDED, order=_jobs.id)

    def unended_clones(self, job_id: str) -> list[Job]:
        return JOBS.where(self._connection, _jobs.cloned_from == job_id, IS_UNENDED, order=_jobs.id)

    def find_using_dataset(self, sha256: str, member_id: str) -> Job | None:
        # The spec is stored as JSON. It escapes quotation marks in names, so only a real `sha256` key can match.
        uses_it = cast(_jobs.spec, Text).contains(f'"sha256": "{sha256}"')
        conditions = (IS_UNENDED, uses_it, _jobs.member_id == member_id)
        row = self._connection.execute(JOBS.select.where(*conditions).limit(1)).first()
        return None if row is None else JOBS.load(row)

    def typical_step_time(self, base_model: str, tokens_per_step: int) -> StepTime:
        def is_alike(spec: dict[str, Any]) -> bool:
            same_size = spec["global_batch_size"] * spec["sequence_len"] == tokens_per_step
            return spec["base_model"] == base_model and same_size and "evaluation" not in spec

        return self._typical_time(is_alike)

    def typical_unit_time(self, base_model: str, sequence_len: int, max_new_tokens: int) -> StepTime:
        def is_alike(spec: dict[str, Any]) -> bool:
            tokens = (spec["sequence_len"], spec.get("evaluation", {}).get("max_new_tokens"))
            return spec["base_model"] == base_model and tokens == (sequence_len, max_new_tokens)

        return self._typical_time(is_alike)

    def _typical_time(self, is_alike: Callable[[dict[str, Any]], bool]) -> StepTime:
        """The newest times of jobs with such a file."""
        typical = StepTime()
        timed = select(_jobs.spec, _jobs.gpu_step_s, _jobs.host_step_s).where(tables.IS_TIMED)
        for spec, gpu_s, host_s in self._connection.execute(timed.order_by(_jobs.id.desc()).limit(_JOBS_TO_COMPARE)):
            if is_alike(spec):
                typical = StepTime(gpu_s=typical.gpu_s or gpu_s, host_s=typical.host_s or host_s)
        return typical

    def typical_checkpoint_bytes(self, base_model: str, lora_r: int) -> int | None:
        heads = tables.checkpoints.c
        saved = select(_jobs.spec, heads.size).where(heads.job_id == _jobs.id, heads.sha256 == _jobs.head)
        for spec, size in self._connection.execute(saved.order_by(_jobs.id.desc()).limit(_JOBS_TO_COMPARE)):
            if (spec["base_model"], spec["lora_r"]) == (base_model, lora_r) and "evaluation" not in spec:
                return size
        return None

    def set_tags(self, job_id: str, tags: Iterable[str]) -> None:
        self._connection.execute(delete(_tags).where(_tags.c.job_id == job_id))
        if rows := [{"job_id": job_id, "tag": tag} for tag in tags]:
            self._connection.execute(insert(_tags), rows)

    def tags(self, job_id: str) -> list[str]:
        return list(self._connection.execute(select(_tags.c.tag).where(_tags.c.job_id == job_id)).scalars())

    def set_note(self, job_id: str, note: str) -> None:
        self._connection.execute(delete(_notes).where(_notes.c.job_id == job_id))
        if note:
            self._connection.execute(insert(_notes).values(job_id=job_id, note=note))

    def clone_names(self, job_id: str) -> set[str]:
        return set(self._connection.execute(select(_jobs.name).where(_jobs.cloned_from == job_id)).scalars())

    def delete_records(self, job_id: str) -> None:
        leases = select(tables.leases.c.id).where(tables.leases.c.job_id == job_id)
        channels = select(tables.channels.c.id).where(tables.channels.c.job_id == job_id)
        for statement in (
            delete(tables.metrics).where(tables.metrics.c.job_id == job_id),
            delete(tables.samples).where(tables.samples.c.job_id == job_id),
            delete(tables.readings).where(tables.readings.c.lease_id.in_(leases)),
            delete(tables.deliveries).where(tables.deliveries.c.channel_id.in_(channels)),
            delete(tables.channels).where(tables.channels.c.job_id == job_id),
            delete(_notes).where(_notes.c.job_id == job_id),
            delete(pushes).where(pushes.c.job_id == job_id),
            delete(tracked_runs).where(tracked_runs.c.job_id == job_id),
            delete(machine_exports).where(machine_exports.c.job_id == job_id),
        ):
            self._connection.execute(statement)
        delete_evaluation(self._connection, job_id)
