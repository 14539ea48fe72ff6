"""The repositories of store configurations, and of the ids that stores give to keys."""

from __future__ import annotations

from sqlalchemy import and_, bindparam, delete, func, select, update

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement, Upsert
from orchestrator.adapters.database.export_tables import machine_exports
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.storage import StoreConfig

STORES = Mapper(StoreConfig, tables.stores)
_objects = tables.store_objects.c
_this_object = and_(_objects.store == bindparam("of"), _objects.key == bindparam("at"))
_get_id = Statement(select(_objects.external_id).where(_this_object))
_add_id = Upsert(tables.store_objects)
_delete_id = Statement(delete(tables.store_objects).where(_this_object, _objects.external_id == bindparam("id")))


class SqlStoreRepository(SqlRepository):
    """Implements `ports.repository.storage.StoreRepository`."""

    def all(self) -> list[StoreConfig]:
        return STORES.where(self._connection, order=tables.stores.c.created_at)

    def put(self, config: StoreConfig) -> None:
        if config.current:
            self._connection.execute(update(tables.stores).values(current=False))
        self._connection.execute(delete(tables.stores).where(tables.stores.c.name == config.name))
        STORES.add(self._connection, config)

    def count_kept(self, store: str) -> int:
        kept = (CheckpointState.OFFERED, CheckpointState.COMMITTED)
        is_here = tables.checkpoints.c.store == store
        counts = (
            select(func.count()).select_from(tables.checkpoints).where(is_here, tables.checkpoints.c.state.in_(kept)),
            select(func.count()).select_from(tables.jobs).where(tables.jobs.c.adapter_store == store),
            select(func.count()).select_from(machine_exports).where(machine_exports.c.store == store),
        )
        return sum(self._connection.execute(count).scalar_one() for count in counts)


class SqlStoreObjectRepository(SqlRepository):
    """Implements `ports.repository.storage.StoreObjectRepository`."""

    def get(self, store: str, key: str) -> str | None:
        row = _get_id.first(self._connection, {"of": store, "at": key})
        return None if row is None else row[0]

    def get_or_add(self, store: str, key: str, external_id: str) -> str:
        _add_id.run(self._connection, {"store": store, "key": key, "external_id": external_id})
        return self.get(store, key) or external_id

    def delete(self, store: str, key: str, external_id: str) -> None:
        _delete_id.run(self._connection, {"of": store, "at": key, "id": external_id})

    def keys(self, store: str, prefix: str) -> list[str]:
        statement = select(_objects.key).where(
            _objects.store == store, _objects.key.startswith(prefix, autoescape=True)
        )
        return [key for (key,) in self._connection.execute(statement)]

    def delete_folders(self, store: str) -> None:
        is_folder = _objects.key.endswith("/")
        self._connection.execute(delete(tables.store_objects).where(_objects.store == store, is_folder))
