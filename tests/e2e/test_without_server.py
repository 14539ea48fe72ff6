"""`trainhop.run` in real processes, in each kind of place, compared with a server's run of the same job.

`benchmarks.reach` has the other stories of the same cell.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trainhop
from benchmarks.reach.cells import CELL, ending, environment, on_drive, on_hub, saved, trainer_after
from benchmarks.tiny_job import Run, job_file, read_place
from tests.helpers import forked_process
from worker.notebook import place_cell
from worker.shared.shared_places import Place
from worker.shared.shared_places.head import HEAD, read_head
from worker.shared.shared_places.local_folder import LocalFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def job(model_and_rows: tuple[Path, Path]) -> dict[str, Any]:
    return job_file(model_and_rows[0], str(model_and_rows[1]), "lora")


@pytest.fixture(params=["hub", "drive"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An emulated place, and this process's environment for its cells."""
    emulated = request.getfixturevalue(request.param)
    made, variables = on_hub(emulated, tmp_path / "hub-home") if request.param == "hub" else on_drive(emulated)
    with environment(variables):
        yield made
    made.close()


def test_a_killed_cell_continues_in_the_same_bytes(
    place: Place, job: dict[str, Any], unbroken: Run, tmp_path: Path
) -> None:
    address = place.address
    cut = ending(signal.SIGKILL, saved(10))
    first = trainhop.run(job, place=address)
    cut.join()
    assert (first.outcome, first.adapter) == ("failed", None)
    assert 10 <= first.step < 60
    assert f"step {first.step} of 60 is saved in {address}. Run the same cell again" in first.words
    done = trainhop.run("not-on-this-machine.yaml", place=address)
    assert (done.outcome, done.step, done.adapter) == ("finished", 60, f"{address}/adapter")
    assert read_place(place, 0, tmp_path) == replace(unbroken, kills=0)
    assert len(done.progress.losses) == 60


def test_a_sleeper_that_wakes_after_a_takeover_writes_nothing(
    job: dict[str, Any], unbroken: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second cell is told who holds the job, and stopped. The third takes it over, and the first one wakes."""
    place = LocalFolder(tmp_path / "place")
    code = f"{forked_process.lines()}import trainhop; print(trainhop.run({job!r}, place={place.address!r}))"
    variables = {**os.environ, CELL: "first"}
    with subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True) as first:
        sleeper = trainer_after(saved(3), "first")
        sleeper.suspend()
        held = read_head(place.read_doc(HEAD) or b"")
        stopped = ending(signal.SIGTERM, lambda event: event.get("wait"))
        told = trainhop.run(job, place=place.address)
        stopped.join()
        assert told.words.startswith("Stopped at once: no step is saved.")
        said = rf"holds this run since {held.since}, at step {held.step}. This cell continues when it ends, or has been"
        assert said in capsys.readouterr().out
        place_cell._DEAD[place.address] = held.writer  # as if it had been silent for the place's patience
        done = trainhop.run(job, place=place.address)
        assert (done.outcome, done.step) == ("finished", 60)
        sleeper.resume()
        late, _ = first.communicate(timeout=120)
    assert re.search(r"Stopped: .* This cell has stopped saving", late), late
    assert read_place(place, 0, tmp_path) == replace(unbroken, kills=0)
    assert Path(done.adapter or "", "README.md").is_file()
