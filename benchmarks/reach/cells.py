"""Cells without a server that are cut: their training process, and the emulated places that they use."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lab import Lab
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from worker.shared.shared_places import Credentials, Place
from worker.shared.shared_places.addresses import find_place
from worker.shared.shared_places.local_folder import LocalFolder

Event = dict[str, Any]
TOKEN = "hf_of_ann"
PATIENCE_S = 300
CELL = "TRAINHOP_BENCH_CELL"
"""The variable by which a cell's training process is known. Tests fork it, so it is nobody's child."""


def _trainer(cell: str) -> psutil.Process | None:
    return next((each for each in psutil.process_iter() if _is_of(each, cell)), None)


def _is_of(process: psutil.Process, cell: str) -> bool:
    try:
        return "trainhop.place_process" in _words(process) and process.environ().get(CELL) == cell
    except psutil.Error:  # it has just ended
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return [word for word in process.cmdline() if word]
    except psutil.Error:  # it has just ended
        return []


def trainer_after(is_time: Callable[[Event], object], cell: str) -> psutil.Process:
    """The training process of a cell with this `CELL`, once it has told such an event."""

    def found() -> psutil.Process | None:
        process = _trainer(cell)
        words = _words(process) if process is not None else ()
        events = Path(words[-1]).with_name("events.jsonl") if words else Path()
        lines = events.read_text().splitlines() if events.is_file() else ()
        return process if any(is_time(json.loads(line)) for line in lines) else None

    return Lab.wait_for(found, "an event", PATIENCE_S, 0.05)


def saved(step: int) -> Callable[[Event], bool]:
    """Whether an event says that this step, or a later one, is saved."""
    return lambda event: event.get("saved", 0) >= step


def ending(number: signal.Signals, is_time: Callable[[Event], object]) -> threading.Thread:
    """Sends a signal to the training process of this process's next cell when it is time."""
    os.environ[CELL] = cell = secrets.token_hex(8)
    thread = threading.Thread(target=lambda: trainer_after(is_time, cell).send_signal(number))
    thread.start()
    return thread


def on_hub(hub: HubEmulator, home: Path) -> tuple[Place, dict[str, str]]:
    """A place there, and the variables that a cell needs."""
    hub.accounts[TOKEN] = "ann"
    place = find_place("hf://ann/my-run", Credentials(hub_token=TOKEN, hub_endpoint=hub.endpoint))
    return place, {**hub.environment(home), "HF_TOKEN": TOKEN}


def on_drive(drive: Drive) -> tuple[Place, dict[str, str]]:
    """The same on Google Drive."""
    token, settings = drive.tokens.sign_in(), {"ENDPOINT": drive.url, "SETTLE_S": "0"}
    place = find_place("drive://my-run", Credentials(drive_token=lambda: token, drive_endpoint=drive.url))
    return place, {f"TRAINHOP_DRIVE_{key}": value for key, value in {**settings, "TOKEN": token}.items()}


@contextmanager
def a_place(kind: str, folder: Path) -> Iterator[Place]:
    """A new place of a kind, `folder`, `hub` or `drive`, and this process's environment for it."""
    if kind == "folder":
        yield LocalFolder(folder / "place")
    elif kind == "hub":
        with HubEmulator() as hub:
            place, variables = on_hub(hub, folder / "hub-home")
            with environment(variables):
                yield place
    else:
        with Drive(folder / "drive") as drive:
            place, variables = on_drive(drive)
            with environment(variables):
                yield place
            place.close()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with these variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
