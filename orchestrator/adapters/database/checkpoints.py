"""The repository of checkpoints."""

from __future__ import annotations

from sqlalchemy import and_, bindparam, exists, literal_column, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.jobs import Checkpoint
from orchestrator.domain.lifecycle import CheckpointState

CHECKPOINTS = Mapper(
    Checkpoint, tables.checkpoints, enums={"state": CheckpointState}, frozen=("manifest", "lease_id", "created_at")
)
_checkpoints = tables.checkpoints.c
_in_use = Statement(
    select(_checkpoints.job_id)
    .where(
        _checkpoints.key == bindparam("key"),
        _checkpoints.store == bindparam("store"),
        # Written exactly like the condition of the partial index, otherwise SQLite does not use that index.
        _checkpoints.state.in_([literal_column("'offered'"), literal_column("'committed'")]),
    )
    .limit(1)
)
_links = Statement(
    select(_checkpoints.sha256, _checkpoints.step, _checkpoints.parent).where(_checkpoints.job_id == bindparam("job"))
)
_undeleted = Statement(
    CHECKPOINTS.select.where(
        # Also written exactly like the condition of the partial index.
        _checkpoints.state.in_(
            [literal_column("'pruned'"), literal_column("'abandoned'"), literal_column("'corrupt'")]
        ),
        _checkpoints.key != literal_column("''"),
        ~exists().where(tables.jobs.c.id == _checkpoints.job_id, tables.jobs.c.head == _checkpoints.sha256),
    )
)


class SqlCheckpointRepository(SqlRepository):
    """Implements `ports.repository.jobs.CheckpointRepository`."""

    def get(self, job_id: str, sha256: str) -> Checkpoint | None:
        return CHECKPOINTS.get(self._connection, job_id=job_id, sha256=sha256)

    def add(self, checkpoint: Checkpoint) -> None:
        CHECKPOINTS.add(self._connection, checkpoint)

    def save(self, checkpoint: Checkpoint) -> None:
        CHECKPOINTS.save(self._connection, checkpoint)

    def of_job(self, job_id: str, state: CheckpointState | None = None) -> list[Checkpoint]:
        conditions = [_checkpoints.job_id == job_id] + ([_checkpoints.state == state] if state else [])
        return CHECKPOINTS.where(self._connection, *conditions, order=_checkpoints.step)

    def links(self, job_id: str) -> dict[str, tuple[int, str | None]]:
        rows = _links.rows(self._connection, {"job": job_id})
        return {sha256: (step, parent) for sha256, step, parent in rows}

    def stale_offers(self, before: float) -> list[Checkpoint]:
        stale = and_(_checkpoints.state == CheckpointState.OFFERED, _checkpoints.created_at < before)
        return CHECKPOINTS.where(self._connection, stale)

    def undeleted(self) -> list[Checkpoint]:
        return [CHECKPOINTS.load(row) for row in _undeleted.rows(self._connection, {})]

    def is_in_use(self, store: str, key: str) -> bool:
        return _in_use.first(self._connection, {"store": store, "key": key}) is not None
