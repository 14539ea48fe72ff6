"""Gives access to our package `worker` even if a file of the user has the same name."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

NAME = "worker"
FOLDER = Path(__file__).parent.parent
"""The folder of the distribution: site-packages, a checkout, or a wheel on the path."""


class _Finder:
    """Finds our package in `FOLDER`, before all other places on the path."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(FOLDER)]) if name == NAME else None


class _Swap:
    """Swaps the modules in `sys.modules` under the name. Calls may overlap: the last one to end restores the user's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finder = _Finder()
        self._calls = 0
        self._shadowed = False
        self._ours: dict[str, ModuleType] = {}
        self._theirs: dict[str, ModuleType] = {}

    def enter(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 1 and not _is_ours():
                self._shadowed = True
                self._theirs = _take_modules()
                sys.modules.update(self._ours)
                sys.meta_path.insert(0, self._finder)

    def leave(self) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0 and self._shadowed:
                self._shadowed = False
                sys.meta_path.remove(self._finder)
                self._ours = _take_modules()
                sys.modules.update(self._theirs)


_swap = _Swap()


@contextmanager
def own_worker() -> Generator[None]:
    """Inside the block, `import worker` gets our package in every thread. After it, the earlier module is back.

    The block changes nothing if no other module has the name.
    """
    _swap.enter()
    try:
        yield
    finally:
        _swap.leave()


def _is_ours() -> bool:
    """Whether `import worker` would get our package now."""
    if (loaded := sys.modules.get(NAME)) is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(NAME)
        origin = spec.origin if spec is not None else None
    return origin is not None and os.path.realpath(origin) == os.path.realpath(FOLDER / NAME / "__init__.py")


def _take_modules() -> dict[str, ModuleType]:
    """Remove the package and all its submodules from `sys.modules`."""
    names = [name for name in sys.modules if name.partition(".")[0] == NAME]
    return {name: sys.modules.pop(name) for name in names}
