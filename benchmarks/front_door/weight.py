"""Weighs the page of a job: everything that a browser loads for it, as it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.page_states import four_states
from benchmarks.page_weight import STEPS, trained_job, weigh
from benchmarks.report import Figure
from tests.helpers.page_server import page_server

MAX_KIB = 60


def weight(folder: Path) -> Iterator[Figure]:
    """A job with a long curve while it trains and when it is done, and one in each of four states.

    KiB of HTML, curve and static files.
    """
    with page_server(folder / "long") as show:
        job, machine = trained_job(show)
        yield _figure(f"with a curve of {STEPS:,} steps", weigh(show, job))
        assert machine.save(STEPS, folder).json()["committed"]
        assert machine.finish(STEPS).status_code == 204
        yield _figure(f"of a done job with a curve of {STEPS:,} steps", weigh(show, job))
    with page_server(folder / "short") as show:
        for state, path in four_states(show, folder).items():
            yield _figure(f"of a job that is {state}", weigh(show, path.rpartition("/")[2]))


def _figure(what: str, found: dict[str, float]) -> Figure:
    name = f"page {what}, KiB: " + ", ".join(f"{part} {size}" for part, size in found.items() if part != "all")
    return Figure(name=name, value=found["all"], bar=f"<= {MAX_KIB}", ok=found["all"] <= MAX_KIB)
