"""Finds drivers by entry point. A driver that fails to load never stops the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from orchestrator.ports.providers import DriverEnv, Provider, ProviderEntry, ProviderUnavailable

GROUP = "trainhop.providers"
EnvMaker = Callable[[str, type[Provider]], DriverEnv]


class Registry:
    """Implements `ports.providers.Providers`."""

    def __init__(self, entries: Iterable[ProviderEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}

    @classmethod
    def installed(cls, make_env: EnvMaker, found: Iterable[EntryPoint] | None = None) -> Registry:
        """All installed drivers. `make_env` returns the environment for the driver with this name and class."""
        points = entry_points(group=GROUP) if found is None else found
        return cls(_load(point, make_env) for point in points)

    @classmethod
    def of(cls, providers: Mapping[str, Provider]) -> Registry:
        """A registry of existing drivers, for tests and benchmarks."""
        return cls(ProviderEntry(name=name, provider=provider) for name, provider in providers.items())

    def get(self, name: str) -> Provider:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ProviderUnavailable(f"there is no provider {name} (available: {known})")
        if entry.provider is None:
            raise ProviderUnavailable(f"provider {name} is not available: {entry.problem}")
        return entry.provider

    def entries(self) -> Iterable[ProviderEntry]:
        return self._entries.values()


def _load(point: EntryPoint, make_env: EnvMaker) -> ProviderEntry:
    try:
        driver = point.load()
        return ProviderEntry(name=point.name, provider=driver(make_env(point.name, driver)))
    except Exception as error:  # noqa: BLE001  a driver is foreign code and may raise anything
        return ProviderEntry(name=point.name, provider=None, problem=f"{type(error).__name__}: {error}")
