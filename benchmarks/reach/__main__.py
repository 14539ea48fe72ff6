"""Measures runs that need no server: sessions that share a place.

    python -m benchmarks.reach [--only ITEM,...] [--json]

Each module of this package with a function `figures` is an item. The last line is the result. The exit code is 1 if a
figure is not as expected.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Figure, Item, report

MODULES = ("schedules",)


def _item(module: str) -> Item:
    def figures(folder: Path) -> Iterator[Figure]:
        """Libraries of a module that is not asked for are not imported."""
        yield from importlib.import_module(f"benchmarks.reach.{module}").figures(folder)

    return figures


if __name__ == "__main__":
    sys.exit(report(__doc__, {module: _item(module) for module in MODULES}))
