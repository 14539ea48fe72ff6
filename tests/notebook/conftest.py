"""A real server on which nothing starts by itself, a tiny model, and notebooks that are really executed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama

PATIENCE_S = 180


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("shelf")
    return make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shelf: tuple[Path, Path]) -> Iterator[Lab]:
    settings = {"allowed_folders": json.dumps([str(shelf[0].parent)]), "offline": True, "report_every_s": 1}
    with lab(tmp_path_factory.mktemp("lab"), **settings, local_slots=0, lease_s=20, reconcile_s=0.2) as running:
        yield running


@pytest.fixture
def job(server: Lab, shelf: tuple[Path, Path]) -> Any:
    """Submits the tiny job, changed as asked; gives its id."""
    return lambda **changes: server.post("/jobs", job_file(shelf[0], server.upload(shelf[1]), "lora") | changes)["id"]


class Tab:
    """A notebook in a kernel of its own, which runs from the moment it is opened."""

    def __init__(self, path: Path, made: dict[str, Any], before: str = "", **variables: str) -> None:
        cell = made["notebook"]["cells"][1]
        lines = "".join(f"import os; os.environ[{k!r}] = {v!r}\n" for k, v in variables.items())
        path.write_text(json.dumps(made["notebook"] | {"cells": [cell | {"source": lines + before + cell["source"]}]}))
        self._path = path
        self._client = subprocess.Popen([sys.executable, "-m", "tests.notebook.execute", str(path)])

    def interrupt(self) -> None:
        """What the stop button does."""
        self.kernel.send_signal(signal.SIGINT)

    @property
    def kernel(self) -> psutil.Process:
        """The process that runs the cell."""
        Lab.wait_for(self._path.with_suffix(".kernel").exists, "a kernel")
        return psutil.Process(int(self._path.with_suffix(".kernel").read_text()))

    def kill(self) -> None:
        """End the client, its kernel and whatever that has started."""
        with suppress(psutil.NoSuchProcess):
            client = psutil.Process(self._client.pid)
            for process in [*client.children(recursive=True), client]:
                process.kill()
        self._client.wait()

    @cached_property
    def outputs(self) -> list[dict[str, Any]]:
        """What lies under the cell when it has ended."""
        assert self._client.wait(PATIENCE_S) == 0
        return json.loads(self._path.read_text())["cells"][0]["outputs"]

    @property
    def said(self) -> str:
        """All of it as text, whether the cell failed or not."""
        found: list[Any] = []
        for output in self.outputs:
            found += [
                output.get("text", ""),
                output.get("data", {}).get("text/plain", ""),
                *output.get("traceback", []),
            ]
        return "\n".join("".join(part) for part in found if part).strip()

    @property
    def refused(self) -> str:
        """The one sentence of a cell that failed."""
        assert [o["output_type"] for o in self.outputs] == ["error"], self.said
        assert "\n" not in self.said
        return self.said


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Any]:
    """Opens a notebook of the server's answer; `before` is run and `variables` are set in its kernel."""
    opened: list[Tab] = []
    numbers = count()

    def make(made: dict[str, Any], before: str = "", **variables: str) -> Tab:
        opened.append(Tab(tmp_path / f"{next(numbers)}.ipynb", made, before, **variables))
        return opened[-1]

    yield make
    for one in opened:
        one.kill()
