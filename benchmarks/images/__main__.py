"""Jobs on machines like Kaggle's and Colab's, measured.

    python -m benchmarks.images [--only ITEM,...] [--json]

Needs the environments that `make images` builds, and no network. Items: `jobs` (every image, adapter and backend), `start`
(seconds from a kernel's start to its first step), `faults` (what a job's page says when something on the machine is broken),
`kernel` (a person's own notebook kernel after our cell), `doctor` (the check of an account with its probes broken). The last
line is the result; the exit code is 1 if a figure is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.images import doctor, faults, jobs, start
from benchmarks.images.figures import Figure, Shelf
from benchmarks.tiny_job import say
from worker.agent.hardware import cpu_name, versions

ITEMS: dict[str, Callable[[Path, Shelf], Iterator[Figure]]] = {
    "jobs": jobs.every_image,
    "start": start.to_the_first_step,
    "faults": faults.planted,
    "kernel": jobs.own_kernel,
    "doctor": doctor.named,
}


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="comma-separated items: " + ", ".join(ITEMS))
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    asked = parser.parse_args()
    wanted = asked.only.split(",") if asked.only else list(ITEMS)
    if unknown := [item for item in wanted if item not in ITEMS]:
        parser.error(f"there is no item {', '.join(unknown)}, but {', '.join(ITEMS)}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="images-bench-", ignore_cleanup_errors=True) as temporary:
        shelf = Shelf.fill(Path(temporary) / "shelf")
        for item in wanted:
            for figure in ITEMS[item](Path(temporary), shelf):
                say(f"  {'ok ' if figure.ok else 'NOT'} {figure.name}: {figure.value} (bar: {figure.bar})")
                figures.append(figure)
    result = {"figures": [figure.as_json() for figure in figures], **_about()}
    print(json.dumps(result, indent=None if asked.json else 1))
    return int(not all(figure.ok for figure in figures))


def _about() -> dict[str, Any]:
    from benchmarks.gpu.__main__ import commit

    machine = {"processor": cpu_name(), "cpus": os.cpu_count(), "system": platform.platform()}
    return {"machine": machine, "versions": versions(), "commit": commit()}


if __name__ == "__main__":
    sys.exit(main())
