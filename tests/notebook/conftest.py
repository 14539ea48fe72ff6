"""A real server on which nothing starts by itself, a tiny model, and notebooks that are really executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.notebook.tab import Tab


@pytest.fixture(scope="module")
def model_and_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_and_rows: tuple[Path, Path]) -> Iterator[Lab]:
    settings = {"allowed_folders": json.dumps([str(model_and_rows[0].parent)]), "offline": True, "report_every_s": 1}
    with lab(tmp_path_factory.mktemp("lab"), **settings, local_slots=0, lease_s=20, reconcile_s=0.2) as running:
        yield running


@pytest.fixture
def job(server: Lab, model_and_rows: tuple[Path, Path]) -> Any:
    """Submits the tiny job, changed as asked; gives its id."""
    return lambda **changes: server.post(
        "/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora") | changes
    )["id"]


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Any]:
    """Opens a notebook of the server's answer; `before` is run and `variables` are set in its kernel."""
    opened: list[Tab] = []
    numbers = count()

    def make(made: dict[str, Any], before: str = "", *, elsewhere: bool = False, **variables: str) -> Tab:
        path = tmp_path / f"{next(numbers)}.ipynb"
        opened.append(Tab(path, made, before=before, variables=variables, elsewhere=elsewhere))
        return opened[-1]

    yield make
    for one in opened:
        one.kill()
