"""What each of the four accelerators buys: the server with all of them against the server without one of them.

    python -m benchmarks.accelerators --json

Each accelerator is measured with and without it one right after the other, in an order that changes from round to
round, and the ratio is formed within such a pair, since the speed of a shared machine drifts. `gain` is the median over
the rounds: 1.5 means half as much again as without, in rates as in processor time and latency. `low` and `high` are the
smallest and the largest of the rounds. Processor time per report or job is what travels between machines.
`docs/architecture.md` explains the four.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.claims import claims, small_writes
from benchmarks.over_http import Load, measure
from benchmarks.substitutes import PLAIN_WAYS, leave_out
from benchmarks.tiny_job import say

ROWS = 10_000
"""Rows of the table of jobs while claims are counted."""
CLAIM_SECONDS = 2.0
RATE = "_per_second"
LOAD = Load(jobs=360, trained_jobs=120, heartbeats=2_400)

Figures = dict[str, float]
Pair = tuple[Figures, Figures]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line, for programs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(PLAIN_WAYS), help="leave out this one alone")
    asked = parser.parse_args()
    names = [asked.only] if asked.only else list(PLAIN_WAYS)
    rounds = [{name: pair(name, LOAD, turned=bool(number % 2)) for name in names} for number in range(asked.rounds)]
    result = {name: compared([one[name] for one in rounds]) for name in names}
    print(json.dumps(result) if asked.json else json.dumps(result, indent=2))
    return 0


def pair(name: str, load: Load, *, turned: bool) -> Pair:
    """Figures with everything, and those without this accelerator; measured in the other order if `turned`."""
    first, second = (_figures(without, load) for without in ((name, "") if turned else ("", name)))
    found = (second, first) if turned else (first, second)
    say(f"{name}: {json.dumps(compared([found]))}")
    return found


def compared(pairs: list[Pair]) -> dict[str, dict[str, float]]:
    """Per figure: medians with and without, and how many times better it is with it."""
    return {figure: _gain([(a[figure], b[figure]) for a, b in pairs], figure) for figure in pairs[0][0]}


def _gain(pairs: list[tuple[float, float]], figure: str) -> dict[str, float]:
    gains = [(a / b if figure.endswith(RATE) else b / a) for a, b in pairs]
    return {
        "with": statistics.median(a for a, _ in pairs),
        "without": statistics.median(b for _, b in pairs),
        "gain": round(statistics.median(gains), 2),
        "low": round(min(gains), 2),
        "high": round(max(gains), 2),
    }


def _figures(without: str, load: Load) -> Figures:
    say(f"without {without} ..." if without else "with all ...")
    with tempfile.TemporaryDirectory(prefix="accelerators-") as temporary:
        folder = Path(temporary)
        found = measure(folder / "http", load, without=without)
        found["heartbeat_p99_ms"] = found.pop("heartbeat_ms")["p99"]
        # In a process of its own, in which an accelerator can be left out.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found |= pool.submit(_on_the_database, folder, without).result()
    return {name: float(value) for name, value in found.items()}


def _on_the_database(folder: Path, without: str) -> Figures:
    if without:
        leave_out(without)
    return {
        "claims_per_second": claims(folder / "claims", ROWS, CLAIM_SECONDS),
        "small_writes_per_second": small_writes(folder / "w"),
    }


if __name__ == "__main__":
    sys.exit(main())
