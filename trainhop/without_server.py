"""Training without a server: a shared place is store, queue and lock.

    import trainhop

    trainhop.run("job.yaml", place="hf://me/my-run")

The same cell on another machine goes on at the next step.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainhop import job_file
from trainhop.errors import Error
from trainhop.own_worker import own_worker
from trainhop.place_access import choose, slug, variables

if TYPE_CHECKING:
    from worker.notebook.place_cell import PlaceRun

LIMITS_S = {"colab": 12 * 3600.0, "kaggle": 12 * 3600.0}
"""The longest that a machine of these lasts. Colab may end a free one at any time before."""
UNLIMITED_S = 365 * 86_400.0
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")


def run(
    job: str | os.PathLike[str] | Mapping[str, Any], place: str | None = None, budget: float | str | None = None
) -> PlaceRun:
    """Train the job in this cell, or go on with the one in the place. Returns how the cell ended.

    `job` is the path of a job file, its text, or its keys. If the path is of another machine and the place has a job,
    that one goes on. `place` is `hf://OWNER/NAME`, `drive://FOLDER` or the path of a folder. Without it one is chosen,
    which is printed. `budget` is the time of this cell, seconds or for example `"3h"`; by default what is left of the
    machine's longest session. Everything is saved before it ends.

    Training is in a process of its own, with packages of its own. An interrupt of the cell saves and ends it. Raises
    `Error` for a job file that cannot be used, and `trainhop.notebook.NotebookError` with one sentence if nothing could
    be trained.
    """
    with own_worker():
        from worker.notebook.packages import borrowed

        with borrowed():
            from worker.notebook import place_cell
            from worker.shared.places import here

            where = here()
            name, data, folder = _read(job)
            spec = None if data is None else job_file.check(name, data)
            address, why = choose(place, slug((spec or {}).get("name", Path(name).stem)), where)
            print(f"Shared place: {address} ({why}).", flush=True)
            order: dict[str, Any] = {
                "address": _absolute(address),
                "name": name,
                "job": spec,
                "folder": str(folder) if folder is not None else None,
                "budget_s": _budget_s(budget, where),
                "where": {"colab": "Colab", "kaggle": "Kaggle"}.get(where, ""),
            }
            if spec is None:
                print(f"{name} is not on this machine, so the job in the place goes on.", flush=True)
            return place_cell.run(order, variables(address, where), "trainhop.place_process")


def _read(job: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, dict[str, Any] | None, Path | None]:
    """Name, keys and folder of a job file. No keys if its path does not exist here."""
    if isinstance(job, Mapping):
        return "the job", dict(job), Path.cwd()
    if isinstance(job, str) and ("\n" in job or ": " in job):
        return "the job", job_file.parse("the job", job), Path.cwd()
    path = Path(job)
    if not path.exists():
        return str(path), None, None
    return str(path), job_file.read(path), path.resolve().parent


def _absolute(address: str) -> str:
    """The child has the cell's folder, too, but a person may call from another one later."""
    return address if "://" in address else str(Path(os.path.expanduser(address)).absolute())  # noqa: PTH111


def _budget_s(budget: float | str | None, where: str) -> float:
    if budget is None:
        return max(60.0, LIMITS_S[where] - _age_s()) if where in LIMITS_S else UNLIMITED_S
    if isinstance(budget, str):
        found = _DURATION.fullmatch(budget.strip().lower())
        if found is None:
            raise Error(
                f'budget: {budget!r} is not a time. Write seconds, or for example "3h" or "90m".', reason="usage"
            )
        budget = float(found[1]) * _UNITS[found[2]]
    if not 1 <= budget <= UNLIMITED_S:
        raise Error("budget: must be between a second and a year.", reason="usage")
    return float(budget)


def _age_s() -> float:
    """Seconds since this machine's first process began, as far as it says so."""
    try:
        ticks = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
