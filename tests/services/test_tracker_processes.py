"""Processes that write to trackers: TensorBoard's file from a real one, and what happens to one that misbehaves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.adapters.trackers import child, tensorboard
from orchestrator.adapters.trackers.processes import ProcessTrackers
from orchestrator.domain.tracking import Point, TrackerLogin
from orchestrator.ports.tracking import RunRequest, TrackerError
from tests.emulators.wandb import WandbEmulator
from tests.helpers.trackers import Journey
from tests.helpers.world import World

LIBRARIES = os.environ.get("TRAINHOP_TRACKERS_PYTHON")
"""A Python with the libraries of trackers. The tests use their own one if it has them."""
REQUEST = RunRequest(
    tracker="tensorboard",
    run_id="job-1",
    name="a run",
    config={"learning_rate": 2e-4},
    notes="Session 1: T4.",
    created_at=1_790_000_000.0,
    login=TrackerLogin(),
)


def some(first: int, last: int) -> list[Point]:
    steps = range(first, last + 1)
    return [Point(step=step, at=1.79e9 + step, values={"loss": 1 / step, "session": 1.0}) for step in steps]


def write(trackers: ProcessTrackers, request: RunRequest, last: int, state: str = "running") -> int:
    """Write all steps up to this one that are not there. Returns the last step that was there."""
    with trackers.open(request) as run:
        run.write(some(run.last_step + 1 if run.last_step > 0 else 1, last), state)
        return run.last_step


def steps_of(path: Path) -> list[int]:
    """The steps of a file's events, by the format and not by the writer's own reader."""
    data, found = path.read_bytes(), list[int]()
    while data:
        length = int.from_bytes(data[:8], "little")
        event, rest = data[12 : 12 + length], data[16 + length :]
        assert data[: 16 + length] == tensorboard.record(event)
        assert len(event) == length
        step = event[10] if event[10] < 0x80 else (event[10] & 0x7F) | event[11] << 7
        found += [step] if step else []
        data = rest
    return found


def test_tensorboard_is_one_file_with_each_step_once(world1: World) -> None:
    """Guard: without the truncation in `Events`, nothing after the torn record could be read."""
    journey = Journey.of(world1, report_to="tensorboard")
    trackers = ProcessTrackers(world1.folder)
    world1.ctx = replace(world1.ctx, trackers=trackers)
    worker = journey.begin()
    journey.train(worker, 4)
    journey.train(worker, 6, saves=False)
    journey.lose(worker)
    assert journey.look("tensorboard").written_step == 4
    path = trackers.file_of(journey.job)
    assert path is not None
    with path.open("ab") as file:  # a writer was killed within a record
        file.write(tensorboard.record(b"x" * 40)[:30])
    again = journey.begin()
    journey.train(again, 12)
    journey.finish(again)
    run = journey.look("tensorboard", times=2)
    assert (run.told, run.reason) == ("succeeded", "")
    assert steps_of(path) == list(range(1, 13))
    assert path.stat().st_mode & 0o077 == 0
    trackers.forget(journey.job)
    assert trackers.file_of(journey.job) is None


@pytest.mark.parametrize("cut", [1, 5, 13, 40, -1])
def test_a_torn_record_is_cut_off(tmp_path: Path, cut: int) -> None:
    """Guard: without the look at the checksum, a record of zeros (`-1`) counted."""
    from orchestrator.adapters.trackers.run import Run

    login = {"url": "", "key": "", "project": ""}
    run = Run(id="j", name="j", config={}, notes="", created_at=1.0, folder=str(tmp_path), **login)
    for last in (3, 6):
        events = tensorboard.Events(run)
        events.write([(p.step, p.at, p.values) for p in some(events.last_step + 1 or 1, last) if p.step])
        events.close("running")
        (path,) = tmp_path.iterdir()
        whole = tensorboard.record(b"\x09" + b"\0" * 8 + b"\x10\x09")
        torn = whole[:12] + bytes(len(whole) - 12) if cut == -1 else (whole * 3)[:cut]
        with path.open("ab") as file:
            file.write(torn if cut == -1 or cut < len(whole) else whole[: len(whole) - 1])
    last_one = tensorboard.Events(run)
    assert last_one.last_step == 6
    last_one.close("running")
    assert steps_of(path) == list(range(1, 7))


def script(tmp_path: Path, text: str) -> Path:
    """A program in the place of Python."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("exec sleep 600", "did not answer in time"),
        ("exit 3", "ended without an answer"),
        ("echo nonsense", "ended without an answer"),
        ('echo \'{"error": "no room"}\'', "did not take it: no room"),
        ("sleep 600 & exec sleep 600", "did not answer in time"),
    ],
)
def test_a_writer_that_misbehaves_is_ended(tmp_path: Path, program: str, words: str) -> None:
    """Guard: without the timer, the first one held its thread for ten minutes. Killed alone, the last one left one."""
    trackers = ProcessTrackers(tmp_path, python=script(tmp_path, program), longest_s=0.3)
    with pytest.raises(TrackerError, match=words):
        write(trackers, REQUEST, 3)
    assert list((tmp_path / "trackers").iterdir()) == []


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    trackers = ProcessTrackers(tmp_path, python=script(tmp_path, "exit 1"))
    assert "pip install 'trainhop[mlflow]'" in trackers.fault("mlflow", None)
    assert trackers.fault("tensorboard", None) == ""
    assert "does not start" in ProcessTrackers(tmp_path, python=tmp_path / "nothing").fault("mlflow", None)


@pytest.mark.parametrize(
    ("tracker", "login", "words"),
    [
        ("wandb", None, "needs an API key"),
        ("wandb", TrackerLogin(key="k", url="https://x.example"), "Only an admin"),
        ("wandb", TrackerLogin(key="k", url="x.example", is_trusted=True), "begins with https"),
        ("wandb", TrackerLogin(key="k"), ""),
        ("mlflow", None, "trainhop trackers set mlflow"),
        ("mlflow", TrackerLogin(url="sqlite:////etc/x.db"), "begins with https"),
        ("mlflow", TrackerLogin(url="/data"), "begins with https"),
        ("mlflow", TrackerLogin(url="https://x.example"), ""),
        ("trackio", None, "needs a Space"),
        ("trackio", TrackerLogin(url="ann/space"), "needs a key"),
        ("trackio", TrackerLogin(url="../x/y", key="k"), "that of a Space"),
        ("trackio", TrackerLogin(url="ann/space", key="k"), ""),
        ("tensorboard", TrackerLogin(key="k"), "needs no login"),
    ],
)
def test_logins_are_judged_without_a_call(tmp_path: Path, tracker: str, login: TrackerLogin | None, words: str) -> None:
    found = ProcessTrackers(tmp_path, python=script(tmp_path, "exit 0")).fault(tracker, login)
    assert words in found
    assert bool(words) is bool(found)


def test_a_writer_connects_only_outside() -> None:
    """Guard: without `_stay_outside`, a member's address led into the server's own network."""
    program = (
        "import runpy, socket\n"
        f"child = runpy.run_path({child.__file__!r})\n"
        "child['_stay_outside'](child['_module']('tensorboard')[1])\n"
        "import threading\n"
        "def call():\n"
        "    try:\n        socket.create_connection(('localhost', 9), 1)\n"
        "    except OSError as error:\n        print(error)\n"
        "thread = threading.Thread(target=call); thread.start(); thread.join()"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "inside the server's own network" in found.stdout


def test_a_key_is_not_in_the_words_of_an_error() -> None:
    """Guard: a library's text repeated the key."""
    assert child._words(ValueError("bad key abc123 given\nmore"), "", "abc123") == "bad key *** given"
    wrapped = ValueError("a long text")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert child._words(wrapped, "https://x", "") == "https://x cannot be reached (Connection refused)"


@pytest.mark.skipif(LIBRARIES is None and find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_is_one_run_with_each_step_once(tmp_path: Path) -> None:
    """With W&B's own library against an emulated server that fails and cuts."""
    python = Path(LIBRARIES) if LIBRARIES else None
    trackers = ProcessTrackers(tmp_path, python=python)
    with WandbEmulator() as wandb:
        login = TrackerLogin(url=wandb.url, key="0" * 40, project="ann/demo", is_trusted=True)
        request = replace(REQUEST, tracker="wandb", login=login)
        wandb.faults = ["500", "cut"]
        assert write(trackers, request, 4) == -1
        assert write(trackers, request, 9, "failed") == 4
        run = wandb.runs["job-1"]
        assert run.steps == list(range(1, 10))
        assert (run.states[-1], run.notes) == (1, "Session 1: T4.")
        assert "hostname" not in str(wandb.bodies)


@pytest.mark.skipif(LIBRARIES is None and find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_says_why_it_cannot_be_reached(tmp_path: Path) -> None:
    """With MLflow's own library. `benchmarks.reach` writes to its own server."""
    trackers = ProcessTrackers(tmp_path, python=Path(LIBRARIES) if LIBRARIES else None)
    login = TrackerLogin(url="http://127.0.0.1:9", is_trusted=True)
    with pytest.raises(TrackerError, match=r"127\.0\.0\.1:9 cannot be reached"):
        write(trackers, replace(REQUEST, tracker="mlflow", login=login), 4)
