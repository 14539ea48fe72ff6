"""`trainhop.run` in real processes, in each kind of place, compared with a server's run of the same job.

`benchmarks.reach` has the other stories of the same cell.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import trainhop
from benchmarks.lab import Lab
from benchmarks.tiny_job import Run, job_file, read_place
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from worker.notebook import place_cell
from worker.shared.shared_places import Credentials, Place
from worker.shared.shared_places.addresses import find_place
from worker.shared.shared_places.head import HEAD, read_head
from worker.shared.shared_places.local_folder import LocalFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def job(model_and_rows: tuple[Path, Path]) -> dict[str, Any]:
    return job_file(model_and_rows[0], str(model_and_rows[1]), "lora")


def trainer(parent: int | None = None) -> psutil.Process | None:
    """The training process of this test's cell, or of another one's."""
    children = psutil.Process(parent).children(recursive=True)
    return next((p for p in children if "trainhop.place_process" in p.cmdline()), None)


def trainer_after(is_time: Callable[[dict[str, Any]], object], parent: int | None = None) -> psutil.Process:
    """The same once it has told its cell such an event."""

    def found() -> psutil.Process | None:
        process = trainer(parent)
        events = Path(process.cmdline()[-1]).with_name("events.jsonl") if process is not None else Path()
        lines = events.read_text().splitlines() if events.is_file() else ()
        return process if any(is_time(json.loads(line)) for line in lines) else None

    return Lab.wait_for(found, "an event", 120, 0.05)


def saved(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event.get("saved", 0) >= step


def ending(number: signal.Signals, is_time: Callable[[dict[str, Any]], object]) -> threading.Thread:
    """Sends a signal to this test's training process."""
    thread = threading.Thread(target=lambda: trainer_after(is_time).send_signal(number))
    thread.start()
    return thread


@pytest.fixture
def on_hub(hub: HubEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Place]:
    token, address = "hf_of_ann", "hf://ann/my-run"
    hub.accounts[token] = "ann"
    for name, value in {**hub.environment(tmp_path / "hub-home"), "HF_TOKEN": token}.items():
        monkeypatch.setenv(name, value)
    return address, find_place(address, Credentials(hub_token=token, hub_endpoint=hub.endpoint))


@pytest.fixture
def on_drive(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Place]:
    token, address = drive.tokens.sign_in(), "drive://my-run"
    for name, value in {"TOKEN": token, "ENDPOINT": drive.url, "SETTLE_S": "0"}.items():
        monkeypatch.setenv(f"TRAINHOP_DRIVE_{name}", value)
    return address, find_place(address, Credentials(drive_token=lambda: token, drive_endpoint=drive.url))


@pytest.mark.parametrize("kind", ["on_hub", "on_drive"])
def test_a_killed_cell_continues_in_the_same_bytes(
    kind: str, job: dict[str, Any], unbroken: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address, place = request.getfixturevalue(kind)
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
    place.close()


def test_a_sleeper_that_wakes_after_a_takeover_writes_nothing(
    job: dict[str, Any], unbroken: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second cell is told who holds the job, and stopped. The third takes it over, and the first one wakes."""
    place = LocalFolder(tmp_path / "place")
    code = f"import trainhop; print(trainhop.run({job!r}, place={place.address!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        sleeper = trainer_after(saved(3), first.pid)
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
    assert re.search(r"Stopped: .* This cell saves no more", late), late
    assert read_place(place, 0, tmp_path) == replace(unbroken, kills=0)
    assert Path(done.adapter or "", "README.md").is_file()
