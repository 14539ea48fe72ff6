"""One job over three kinds of machine ends in the bytes of the unbroken run on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import mixed_path
from benchmarks.exact_resume import train
from benchmarks.tiny_job import write_rows
from benchmarks.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_kaggle_notebook_and_this_computer_end_in_the_same_bytes(tmp_path: Path) -> None:
    """Begun in an emulated Kaggle kernel, continued in an executed notebook, lost on this computer and finished there."""
    shelf = make_tiny_llama(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    unbroken = train(tmp_path / "whole", *shelf, 0, "lora", 1)
    mixed = mixed_path.train(tmp_path / "mixed", *shelf, 3, "lora", 1)
    assert mixed == replace(unbroken, kills=3)
