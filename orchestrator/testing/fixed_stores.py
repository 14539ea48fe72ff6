"""Stores that never change, for tests without a database of stores."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from orchestrator.domain.errors import InvalidError
from orchestrator.domain.storage import StoreConfig
from orchestrator.ports.stores import SignIn, Store, StoreKind


class FixedStores:
    """Implements `ports.Stores`: `local` holds data files, `current` takes new checkpoints, by default `local` too."""

    def __init__(self, local: Store, current: Store | None = None) -> None:
        self._local, self._current = local, current or local

    def local(self) -> Store:
        return self._local

    def current(self) -> Store:
        return self._current

    def get(self, name: str) -> Store:
        return self._local if name == self._local.name else self._current

    def names(self) -> Iterable[str]:
        return {self._local.name: None, self._current.name: None}

    def kind(self, name: str) -> StoreKind:
        return StoreKind(name=name, make=lambda _: self.get(name))

    def trial(self, config: StoreConfig) -> AbstractContextManager[Store]:
        return nullcontext(self._current)

    def sign_in(self, name: str, client: str) -> SignIn:
        raise InvalidError("this store has no sign-in", [("/client", "this store has no sign-in")])

    def refresh(self) -> None: ...


# --- contracts -------------------------------------------------------------------------------------------
