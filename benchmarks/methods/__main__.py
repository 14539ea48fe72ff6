"""Measures ways of training, and what is trained.

    python -m benchmarks.methods [--only ITEM,...] [--json]

Each module of this package with a function `figures` is an item. The last line is the result. The exit code is 1 if a
figure is not as expected.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks.methods
from benchmarks.report import Item, report


def items() -> dict[str, Item]:
    """The function `figures` of each module that has one, by the module's name."""
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.methods.__path__) if not m.name.startswith("_"))
    modules = {name: importlib.import_module(f"benchmarks.methods.{name}") for name in names}
    return {name: module.figures for name, module in modules.items() if hasattr(module, "figures")}


if __name__ == "__main__":
    sys.exit(report(__doc__, items()))
