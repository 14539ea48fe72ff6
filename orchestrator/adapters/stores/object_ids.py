"""The ids by which a store knows its keys, kept in the database and cached here.

An id never changes. It can only be removed.
"""

from __future__ import annotations

from orchestrator.ports.repository import UnitOfWork

REMEMBERED = 10_000


class ObjectIds:
    """Implements `ports.stores.ObjectIds` for the store of this name."""

    def __init__(self, uow: UnitOfWork, store: str) -> None:
        self._uow, self._store = uow, store
        self._known: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """The key's id, or None."""
        known = self._known.get(key)
        if known is None:
            with self._uow() as tx:
                known = tx.store_objects.get(self._store, key)
            if known is not None:
                self._remember(key, known)
        return known

    def claim(self, key: str, ident: str) -> str:
        """Tie the id to the key unless the key already has one. Returns the key's id."""
        with self._uow() as tx:
            first = tx.store_objects.get_or_add(self._store, key, ident)
        self._remember(key, first)
        return first

    def forget(self, key: str, ident: str) -> None:
        """Remove the id of the key if it still has this id."""
        with self._uow() as tx:
            tx.store_objects.delete(self._store, key, ident)
        self._known.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        """Keys in this folder that have an id."""
        with self._uow() as tx:
            return tx.store_objects.keys(self._store, prefix)

    def _remember(self, key: str, ident: str) -> None:
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[key] = ident
