"""A tiny model with its data, and the run of it that is never cut: made once for all files here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.exact_resume import train
from benchmarks.tiny_job import Run, write_rows
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
