"""Finding drivers: ours and other people's come through the same entry points, and a broken one never stops the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from orchestrator.ports.providers import Provider, ProviderEntry, ProviderUnavailable

GROUP = "trainhop.providers"


class Registry:
    """Implements `ports.Providers`. `make` builds a driver from its loaded class."""

    def __init__(self, make: Callable[[type[Provider]], Provider], found: Iterable[EntryPoint] | None = None) -> None:
        points = entry_points(group=GROUP) if found is None else found
        self._entries = {point.name: _load(point, make) for point in points}

    @classmethod
    def of(cls, providers: Mapping[str, Provider]) -> Registry:
        """A registry of ready drivers, for tests and benchmarks."""
        registry = cls(lambda kind: kind(), ())
        registry._entries = {name: ProviderEntry(name=name, provider=p) for name, p in providers.items()}
        return registry

    def get(self, name: str) -> Provider:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ProviderUnavailable(f"there is no provider called {name} (known: {known})")
        if entry.provider is None:
            raise ProviderUnavailable(f"provider {name} is not available: {entry.problem}")
        return entry.provider

    def entries(self) -> Iterable[ProviderEntry]:
        return self._entries.values()


def _load(point: EntryPoint, make: Callable[[type[Provider]], Provider]) -> ProviderEntry:
    try:
        return ProviderEntry(name=point.name, provider=make(point.load()))
    except Exception as error:  # noqa: BLE001  a driver is foreign code: whatever it raises is its reason
        return ProviderEntry(name=point.name, provider=None, problem=f"{type(error).__name__}: {error}")
