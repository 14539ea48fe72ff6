"""The stores of an installation: always the local folder, and those in the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.stores import STORES
from orchestrator.adapters.stores.registry import StoreRegistry
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.domain.storage import StoreConfig
from orchestrator.ports.stores import (
    ObjectInfo,
    SignIn,
    Store,
    StoreEnv,
    StoreError,
    StoreKind,
    StoreUnavailable,
    Usage,
)
from orchestrator.ports.system import VaultError
from worker.shared.messages import Grant, GrantKind

BELIEVED_S = 1.0
"""How long the configurations are cached. A change by another process is visible after this time."""

EnvMaker = Callable[[StoreKind, StoreConfig], StoreEnv]


class ConfiguredStores:
    """Implements `ports.Stores`. Safe to call in a transaction, because it reads on its own connection.

    `make_env` returns the environment that a store of this kind and configuration is created with.
    """

    def __init__(self, local: Store, engine: Engine, registry: StoreRegistry, make_env: EnvMaker) -> None:
        self._local, self._engine, self._registry, self._make_env = local, engine, registry, make_env
        self.names, self.kind = registry.names, registry.kind
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._read_at = float("-inf")
        self._configs: dict[str, StoreConfig] | None = None
        self._made: dict[str, tuple[tuple[object, str], Store]] = {}

    def local(self) -> Store:
        return self._local

    def current(self) -> Store:
        name = next((c.name for c in self._now().values() if c.current), self._local.name)
        return self.get(name)

    def get(self, name: str) -> Store:
        if name == self._local.name:
            return self._local
        config = self._now().get(name)
        if config is None:
            return Unusable(name, f"the store {name} is not set up. Run `trainhop store use {name}`")
        made_from = (config.config, config.credentials)
        with self._lock:
            known = self._made.get(name)
            if known is not None and known[0] == made_from:
                return known[1]
        try:
            store = self._make(config)
        except (StoreError, TrainhopError) as error:
            return Unusable(name, str(error))
        with self._lock:
            self._made[name] = (made_from, store)
        if known is not None:
            _close(known[1])
        return store

    @contextmanager
    def trial(self, config: StoreConfig) -> Iterator[Store]:
        store = self._make(config)
        try:
            yield store
        finally:
            _close(store)

    def sign_in(self, name: str, client: str) -> SignIn:
        kind = self._registry.kind(name)
        if kind.sign_in is None:
            words = f"The store {name} has no sign-in in a browser. Enter its credentials instead."
            raise InvalidError(words, [("/client", words)])
        env = self._make_env(kind, StoreConfig(name=name, config={}, created_at=0.0))
        return kind.sign_in(client, env.endpoint)

    def _make(self, config: StoreConfig) -> Store:
        kind = self._registry.kind(config.name)
        try:
            return kind.make(self._make_env(kind, config))
        except (VaultError, ValueError) as error:
            raise StoreUnavailable(str(error)) from error

    def refresh(self) -> None:
        self._read_at = float("-inf")

    def close(self) -> None:
        """Close the connections of every store."""
        with self._lock:
            going = [store for _, store in self._made.values()]
            self._made.clear()
        for store in going:
            _close(store)

    def _now(self) -> dict[str, StoreConfig]:
        """The configurations. While one thread reads them, the others use the previous ones."""
        known, is_old = self._configs, time.monotonic() - self._read_at > BELIEVED_S
        if known is not None and not (is_old and self._reading.acquire(blocking=False)):
            return known
        if known is None:
            self._reading.acquire()
        try:
            read_at = time.monotonic()
            with self._engine.connect() as connection:
                found = STORES.where(connection, order=tables.stores.c.created_at)
            self._configs, self._read_at = {c.name: c for c in found}, read_at
            return self._configs
        finally:
            self._reading.release()


def _close(store: Store) -> None:
    close = getattr(store, "close", None)
    if close is not None:
        close()


class Unusable:
    """Implements `ports.Store` for a store that is not available. Every call raises an error with the reason."""

    def __init__(self, name: str, why: str) -> None:
        self.name, self._why = name, why

    def _say(self) -> StoreUnavailable:
        return StoreUnavailable(self._why)

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        raise self._say()

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        raise self._say()

    def stat(self, key: str) -> ObjectInfo:
        raise self._say()

    def head(self, key: str, size: int) -> bytes:
        raise self._say()

    def put(self, key: str, source: Path) -> ObjectInfo:
        raise self._say()

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        raise self._say()

    def delete(self, key: str) -> None:
        raise self._say()

    def keys(self, prefix: str) -> list[str]:
        raise self._say()

    def usage(self) -> Usage:
        raise self._say()
