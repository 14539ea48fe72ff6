"""Cells without a server, cut and continued in another process, against a server's unbroken run of the same job."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import trainhop
from benchmarks.exact_resume import train
from benchmarks.reach.cells import a_place, ending, environment, saved
from benchmarks.report import Figure
from benchmarks.tiny_job import STEPS, Run, job_file, read_place, say, write_rows
from benchmarks.tiny_model import make_tiny_llama
from worker.shared.shared_places.head import HEAD, read_head
from worker.shared.shared_places.local_folder import LocalFolder

KINDS = ("folder", "hub", "drive")
CUTS = (0, 1, 5)
SAME = "same bytes as with a server"


def figures(folder: Path) -> Iterator[Figure]:
    """Each kind of place with each number of cuts, and a budget."""
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    with environment({"OMP_NUM_THREADS": "1"}), redirect_stdout(sys.stderr):
        whole = train(folder / "server", model, rows, 0, "lora", 0)
        job = job_file(model, str(rows), "lora")
        for kind in KINDS:
            for cuts in CUTS:
                here = folder / f"{kind}-{cuts}"
                here.mkdir()
                say(f"{kind}: {cuts} cuts ...")
                found = _cut(kind, cuts, job, here)
                name = {"folder": "a folder", "hub": "a Hub repository (emulated)", "drive": "Drive (emulated)"}[kind]
                value = SAME if found == replace(whole, kills=cuts) else f"other bytes: {found} instead of {whole}"
                yield Figure(name=f"one cell in {name}, killed {cuts} times", value=value, bar=SAME, ok=value == SAME)
        yield from _budget(job, folder / "budget")


def _cut(kind: str, cuts: int, job: dict[str, Any], folder: Path) -> Run:
    """The job in a new place, killed after `cuts` random steps."""
    with a_place(kind, folder) as place:
        for step in sorted(random.Random(f"{kind}-{cuts}").sample(range(1, STEPS - 1), cuts)):
            cut = ending(signal.SIGKILL, saved(step))
            ended = trainhop.run(job, place=place.address)
            cut.join()
            say(f"  killed, {ended.step} of {ended.total} steps are saved")
            if ended.outcome == "finished":  # it was faster than the signal
                break
        trainhop.run(job, place=place.address)
        return read_place(place, cuts, folder)


def _budget(job: dict[str, Any], folder: Path) -> Iterator[Figure]:
    """A cell whose time ends before its job."""
    place = LocalFolder(folder / "place")
    ended = trainhop.run(
        job | {"max_steps": 100_000, "checkpoint": {"max_interval_s": 3600}}, place=place.address, budget="45s"
    )
    head = read_head(place.read_doc(HEAD) or b"")
    ok = ended.outcome == "saved" and (head.step, head.state) == (ended.step, "released") and head.step > 0
    yield Figure(name="a budget of 45 s", value=ended.words, bar="ends with everything saved", ok=ok)
