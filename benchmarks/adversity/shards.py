"""One item's work shared among processes, each with a folder, seeds and servers of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PROCESSES = int(os.environ.get("BENCH_PROCESSES", "1"))
"""How many processes share the kills of `server_kills` and the requests of `fuzz`."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Shard:
    """One process's part: its number from 0, the number of all parts, a folder, and how much it has to do at least."""

    number: int
    of: int
    folder: Path
    amount: int


def in_shards(work: Callable[[Shard], Part], folder: Path, amount: int) -> list[Part]:
    """Do an amount of work in `PROCESSES` processes at once. Returns what each of them found."""
    shards = [
        Shard(number, PROCESSES, folder / f"shard-{number}", -(-amount // PROCESSES)) for number in range(PROCESSES)
    ]
    for shard in shards:
        shard.folder.mkdir()
    if PROCESSES == 1:
        return [work(shards[0])]
    with ProcessPoolExecutor(PROCESSES) as pool:
        return list(pool.map(work, shards))
