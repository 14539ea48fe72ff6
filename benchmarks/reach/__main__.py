"""Measures other ways in: runs without a server, programs and agents.

    python -m benchmarks.reach [--only ITEM,...] [--json]

Each module of this package with a function `figures` is an item. The last line is the result. The exit code is 1 if a
figure is not as expected.
"""

from __future__ import annotations

import sys

from benchmarks.report import items_of, report

MODULES = (
    *("schedules", "tab", "images", "join", "boxes", "nat"),
    *("openai_client", "mcp_client", "trackers"),
)

if __name__ == "__main__":
    sys.exit(report(__doc__, items_of("benchmarks.reach", MODULES)))
