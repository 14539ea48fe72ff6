"""Measures ways of training, and what is trained.

    python -m benchmarks.methods [--only ITEM,...] [--json]

Each module of this package with a function `figures` is an item. The last line is the result. The exit code is 1 if a
figure is not as expected.
"""

from __future__ import annotations

import sys

from benchmarks.report import items_of, report

MODULES = ("cuts", "gradients", "masks", "memory")

if __name__ == "__main__":
    sys.exit(report(__doc__, items_of("benchmarks.methods", MODULES)))
