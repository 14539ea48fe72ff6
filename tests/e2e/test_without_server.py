"""`trainhop.run` in real processes, compared with a server's run of the same job."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import trainhop
from benchmarks.lab import Lab
from benchmarks.tiny_job import Run, job_file, read_place
from worker.notebook import place_cell
from worker.notebook.errors import NotebookError
from worker.shared.shared_places.head import HEAD, Head, read_head
from worker.shared.shared_places.local_folder import LocalFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def job(model_and_rows: tuple[Path, Path]) -> dict[str, Any]:
    return job_file(model_and_rows[0], str(model_and_rows[1]), "lora")


def head_of(place: Path) -> Head | None:
    text = LocalFolder(place).read_doc(HEAD) if place.exists() else None
    return read_head(text) if text is not None else None


def process_at(place: Path, step: int, parent: int | None = None) -> psutil.Process:
    """The process that trains, once it has saved this step."""

    def found() -> psutil.Process | None:
        head = head_of(place)
        if head is None or head.step < step:
            return None
        children = psutil.Process(parent).children(recursive=True)
        return next((p for p in children if "trainhop.place_process" in p.cmdline()), None)

    return Lab.wait_for(found, f"step {step}", 120, 0.05)


def at(place: Path, step: int, number: signal.Signals) -> threading.Thread:
    """Sends a signal to this test's training process at the step."""
    thread = threading.Thread(target=lambda: process_at(place, step).send_signal(number))
    thread.start()
    return thread


@pytest.mark.parametrize("kills", [0, 1])
def test_it_ends_in_the_same_bytes_as_with_a_server(
    kills: int, job: dict[str, Any], unbroken: Run, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    if kills:
        cut = at(place, 20, signal.SIGKILL)
        first = trainhop.run(job, place=str(place))
        cut.join()
        assert (first.outcome, first.adapter) == ("failed", None)
        assert 20 <= first.step < 60
        assert f"step {first.step} of 60 is saved in {place}. Run the same cell again" in first.words
    done = trainhop.run(job, place=str(place))
    assert (done.outcome, done.step, done.total) == ("finished", 60, 60)
    assert read_place(LocalFolder(place), 0, tmp_path) == replace(unbroken, kills=0)
    assert len(done.progress.losses) == 60
    again = trainhop.run("not-on-this-machine.yaml", place=str(place))
    assert (again.outcome, again.adapter) == ("finished", f"{place}/files/adapter")
    assert Path(again.adapter or "", "README.md").is_file()


def test_a_sleeper_that_wakes_after_a_takeover_writes_nothing(job: dict[str, Any], tmp_path: Path) -> None:
    """The second cell is told who holds the job; later it takes it over, and the first one wakes."""
    place = tmp_path / "place"
    code = f"import trainhop; print(trainhop.run({job!r} | {{'max_steps': 10_000}}, place={str(place)!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        sleeper = process_at(place, 3, first.pid)
        sleeper.suspend()
        held = head_of(place)
        assert held is not None
        # As if the first one had been silent for the place's patience.
        place_cell._DEAD[str(place)] = held.writer
        changed = at(place, held.step + 1, signal.SIGTERM)
        second = trainhop.run(job | {"max_steps": 10_000}, place=str(place))
        changed.join()
        assert second.outcome == "saved"
        after = head_of(place)
        sleeper.resume()
        said, _ = first.communicate(timeout=120)
    assert re.search(r"Stopped: .* has taken over the run in .*This cell saves no more", said), said
    assert head_of(place) == after
    with pytest.raises(NotebookError, match=r"lora_r: the place has 8, this file says 4"):
        trainhop.run(job | {"max_steps": 10_000, "lora_r": 4}, place=str(place))
    assert head_of(place) == after


def test_a_budget_ends_with_everything_saved(job: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "place"
    ended = trainhop.run(
        job | {"max_steps": 100_000, "checkpoint": {"max_interval_s": 3600}}, place=str(place), budget="15s"
    )
    assert ended.outcome == "saved"
    assert ended.words.startswith("The time of this session is over: ")
    head = head_of(place)
    assert head is not None
    assert (head.step, head.state) == (ended.step, "released")
