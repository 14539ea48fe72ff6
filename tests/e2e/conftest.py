"""A tiny model with its data, and the run of it that is never cut: made once for all files here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.exact_resume import train
from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import Run, finished, job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama


@pytest.fixture(scope="session")
def model_and_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and its data."""
    folder = tmp_path_factory.mktemp("inputs")
    return make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")


@pytest.fixture(scope="session")
def unbroken(model_and_rows: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The job on the server's own computer, over HTTP, never cut."""
    return train(tmp_path_factory.mktemp("whole"), *model_and_rows, 0, "lora", 1)


@pytest.fixture
def lab_with_job(tmp_path: Path, model_and_rows: tuple[Path, Path]) -> Iterator[tuple[Lab, str]]:
    """A server with workers on this computer, and a job of two steps that they have finished."""
    settings = {"allowed_folders": json.dumps([str(model_and_rows[0].parent)]), "offline": True, "report_every_s": 1}
    with lab(tmp_path / "lab", **settings, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        file = job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora") | {"max_steps": 2}
        job = server.post("/jobs", file)["id"]
        server.wait_for(lambda: finished(server, job), "the job's end", 180, 0.1)
        yield server, job
