"""The part of a transaction that keeps checkpoints."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, exists, literal_column, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.mapper import CHECKPOINTS
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Checkpoint

_table = tables.checkpoints.c
_in_use = Statement(
    select(_table.job_id)
    .where(
        _table.key == bindparam("key"),
        _table.store == bindparam("store"),
        # Spelled like the partial index's own condition, or SQLite would not use that index.
        _table.state.in_([literal_column("'offered'"), literal_column("'committed'")]),
    )
    .limit(1)
)
_undeleted = Statement(
    CHECKPOINTS.select.where(
        # Spelled like the partial index's own condition, too.
        _table.state.in_([literal_column("'pruned'"), literal_column("'abandoned'"), literal_column("'corrupt'")]),
        _table.key != literal_column("''"),
        ~exists().where(tables.jobs.c.id == _table.job_id, tables.jobs.c.head == _table.sha256),
    )
)


class CheckpointRows:
    """See `persistence.Transaction`."""

    connection: Connection

    def checkpoint(self, job_id: str, sha256: str) -> Checkpoint | None:
        return CHECKPOINTS.get(self.connection, job_id=job_id, sha256=sha256)

    def checkpoints(self, job_id: str, state: CheckpointState | None = None) -> list[Checkpoint]:
        conditions = [_table.job_id == job_id] + ([_table.state == state] if state else [])
        return CHECKPOINTS.where(self.connection, *conditions, order=_table.step)

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        CHECKPOINTS.add(self.connection, checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        CHECKPOINTS.save(self.connection, checkpoint)

    def stale_offers(self, before: float) -> list[Checkpoint]:
        late = and_(_table.state == CheckpointState.OFFERED, _table.created_at < before)
        return CHECKPOINTS.where(self.connection, late)

    def undeleted_checkpoints(self) -> list[Checkpoint]:
        return [CHECKPOINTS.load(row) for row in _undeleted.rows(self.connection, {})]

    def is_in_use(self, store: str, key: str) -> bool:
        return _in_use.first(self.connection, {"store": store, "key": key}) is not None
