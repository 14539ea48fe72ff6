"""Environments of drivers and stores, for their tests. Tests of other distributions may use them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from orchestrator.adapters.stores.signed_links import BlobLinks
from orchestrator.ports.providers import AccountSettings, DriverEnv
from orchestrator.ports.stores import StoreEnv


class FakeAccountSettings(AccountSettings):
    """Settings of an account at a `FakePersonalProvider`."""

    username: Annotated[str, Field(description="The owner's username.")] = ""


class OpenVault:
    """Implements `ports.Vault` without encryption: the sealed text only looks different."""

    def seal(self, secret: str) -> str:
        return secret[::-1]

    def open(self, sealed: str) -> str:
        return sealed[::-1]


class RealClock:
    """Implements `ports.Clock` with the computer's own clock."""

    def now(self) -> float:
        return time.time()


def driver_env(folder: Path, **changes: Any) -> DriverEnv:
    """The environment of a provider's driver. `changes` are fields of `DriverEnv`."""
    return DriverEnv(**{"folder": folder, "vault": OpenVault(), "clock": RealClock()} | changes)


class MemoryIds:
    """Implements `ports.stores.ObjectIds` in a dict."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self.known.get(key)

    def claim(self, key: str, ident: str) -> str:
        return self.known.setdefault(key, ident)

    def forget(self, key: str, ident: str) -> None:
        if self.known.get(key) == ident:
            del self.known[key]

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.known if key.startswith(prefix)]


def store_env(folder: Path = Path(), **changes: Any) -> StoreEnv:
    """The environment of a store. `changes` are fields of `StoreEnv`."""
    links = BlobLinks(lambda key: f"http://127.0.0.1/blobs/{key}", b"key")
    usual = {"name": "test", "folder": folder, "links": links, "ids": MemoryIds(), "config": {"folder": "Trainhop 1"}}
    return StoreEnv(**usual | changes)
