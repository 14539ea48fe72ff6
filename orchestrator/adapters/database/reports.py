"""The repository of what workers report: metrics, samples and hardware readings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from sqlalchemy import delete, select, tuple_

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Upsert
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.jobs import Lease
from worker.shared.messages import MetricRow, Reading, Sample

_replace_metrics, _add_missing_metrics = Upsert(tables.metrics, ("value", "fence", "at")), Upsert(tables.metrics)
_put_samples, _add_reading = Upsert(tables.samples, ("text", "at")), Upsert(tables.readings)


class SqlReportRepository(SqlRepository):
    """Implements `ports.repository.jobs.ReportRepository`."""

    def add_metrics(
        self, job_id: str, lease: Lease, rows: Sequence[MetricRow], at: float, *, replace: bool = True
    ) -> None:
        values = [
            {"job_id": job_id, "name": name, "step": row.step, "value": value, "fence": lease.fence, "at": at}
            for row in rows
            for name, value in row.values.items()
            if not math.isnan(value)  # SQLite stores a NaN as NULL, which the column refuses
        ]
        if values:
            (_replace_metrics if replace else _add_missing_metrics).run(self._connection, *values)

    def earlier_values(self, job_id: str, name: str, first: int, last: int, *, fence: int) -> dict[int, float]:
        metrics = tables.metrics.c
        found = select(metrics.step, metrics.value).where(
            metrics.job_id == job_id,
            metrics.name == name,
            metrics.step.between(first, last),
            metrics.fence < fence,
        )
        return {row.step: row.value for row in self._connection.execute(found)}

    def add_samples(self, job_id: str, samples: Sequence[Sample], at: float) -> None:
        values = [
            {
                "job_id": job_id,
                "step": sample.step,
                "prompt_sha256": hashlib.sha256(sample.prompt.encode()).hexdigest(),
                "prompt": sample.prompt,
                # PostgreSQL cannot store this character, and a model may produce it
                "text": sample.text.replace("\0", "\ufffd"),
                "at": at,
            }
            for sample in samples
        ]
        if values:
            _put_samples.run(self._connection, *values)

    def add_reading(self, lease_id: str, at: float, step: int, reading: Reading) -> None:
        values = {"lease_id": lease_id, "at": at, "step": step, "reading": reading.model_dump(exclude_none=True)}
        _add_reading.run(self._connection, values)

    def delete_readings(self, first_lease: str, limit: int) -> int:
        readings = tables.readings.c
        key = (readings.lease_id, readings.at)
        old = select(*key).where(readings.lease_id < first_lease).order_by(*key).limit(limit)
        return self._connection.execute(delete(tables.readings).where(tuple_(*key).in_(old))).rowcount
