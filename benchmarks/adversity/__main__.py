"""Tries to break the product, and counts what held.

    python -m benchmarks.adversity [--only ITEM,...] [--json]

The last line is the result. The exit code is 1 if a figure is not as expected.
"""

from __future__ import annotations

import sys

from benchmarks.adversity.canaries import canaries
from benchmarks.adversity.checkpoints import checkpoints
from benchmarks.adversity.client import client
from benchmarks.adversity.full_disk import full_disk
from benchmarks.adversity.fuzz import fuzz
from benchmarks.adversity.hostile_files import hostile_files
from benchmarks.adversity.messages import messages
from benchmarks.adversity.server_kills import server_kills
from benchmarks.adversity.steady import steady
from benchmarks.adversity.unpickling import unpickling
from benchmarks.adversity.upgrades import upgrades
from benchmarks.adversity.worker_years import mutants, worker_years
from benchmarks.report import Item, report

ITEMS: dict[str, Item] = {
    "canaries": canaries,
    "checkpoints": checkpoints,
    "client": client,
    "full_disk": full_disk,
    "fuzz": fuzz,
    "hostile_files": hostile_files,
    "messages": messages,
    "mutants": mutants,
    "pickle": unpickling,
    "server_kills": server_kills,
    "steady": steady,
    "upgrades": upgrades,
    "worker_years": worker_years,
}

if __name__ == "__main__":
    sys.exit(report(__doc__, ITEMS))
