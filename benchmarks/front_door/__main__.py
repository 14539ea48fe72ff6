"""Measures the ways into the product.

    python -m benchmarks.front_door [--only ITEM,...] [--json]

Each module of this package is an item. The last line is the result. The exit code is 1 if a figure is not as expected.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks.front_door
from benchmarks.report import Item, report


def items() -> dict[str, Item]:
    """The function of each module, by its name."""
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.front_door.__path__) if not m.name.startswith("_"))
    return {name: getattr(importlib.import_module(f"benchmarks.front_door.{name}"), name) for name in names}


if __name__ == "__main__":
    sys.exit(report(__doc__, items()))
