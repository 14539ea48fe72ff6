"""Measures jobs on machines like Kaggle's and Colab's.

    python -m benchmarks.images [--only ITEM,...] [--json]

Needs the environments that `make images` builds, and no network. Items: `jobs` (every image, adapter and backend),
`start` (seconds from a kernel's start to its first step), `faults` (the text on a job's page if something on the
machine is broken), `kernel` (a person's own notebook kernel after our cell), `doctor` (the check of an account with
broken probes). The last line is the result. The exit code is 1 if a figure is not as expected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.images import doctor, faults, jobs, start
from benchmarks.images.figures import Shelf
from benchmarks.report import Figure, Item, report


def _with_shelf(measure: Callable[[Path, Shelf], Iterator[Figure]]) -> Item:
    return lambda folder: measure(folder, Shelf.fill(folder / "shelf"))


ITEMS: dict[str, Item] = {
    "jobs": _with_shelf(jobs.every_image),
    "start": _with_shelf(start.to_the_first_step),
    "faults": _with_shelf(faults.planted),
    "kernel": _with_shelf(jobs.own_kernel),
    "doctor": _with_shelf(doctor.named),
}

if __name__ == "__main__":
    sys.exit(report(__doc__, ITEMS))
