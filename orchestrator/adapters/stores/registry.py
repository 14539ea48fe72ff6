"""Finds stores by entry point. Each store's module is loaded when it is first used."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points

from orchestrator.domain.errors import NotFoundError
from orchestrator.ports.stores import StoreKind, StoreOptions, StoreSettings, StoreTexts, StoreUnavailable

GROUP = "trainhop.stores"


class StoreRegistry:
    """The installed kinds of stores."""

    def __init__(self, found: Iterable[EntryPoint] | None = None) -> None:
        points = _installed(tuple(sys.path)) if found is None else found
        self._points = {point.name: point for point in points}
        self._kinds: dict[str, StoreKind] = {}

    def names(self) -> list[str]:
        """The names of all kinds, in order."""
        return sorted(self._points)

    def kind(self, name: str) -> StoreKind:
        """The kind with this name. Raises `NotFoundError`, or `StoreUnavailable` if its driver did not load."""
        if name not in self._points:
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(f"there is no kind of store called {name}; known are {known}")
        if name not in self._kinds:
            self._kinds[name] = _load(self._points[name])
        return self._kinds[name]


@cache  # reads the metadata of every installed package
def _installed(_path: tuple[str, ...]) -> EntryPoints:
    return entry_points(group=GROUP)


def _load(point: EntryPoint) -> StoreKind:
    try:
        driver = point.load()
    except Exception as error:  # a driver is foreign code and may raise anything
        raise StoreUnavailable(f"the store {point.name} is not available: {error}") from error
    return StoreKind(
        name=point.name,
        make=driver,
        settings=getattr(driver, "settings", StoreSettings),
        options=getattr(driver, "options", StoreOptions),
        texts=getattr(driver, "texts", StoreTexts(title=point.name)),
        sign_in=getattr(driver, "sign_in", None),
    )
