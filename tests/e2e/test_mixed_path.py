"""One job over three kinds of machine ends in the bytes of the unbroken run on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import mixed_path
from benchmarks.tiny_job import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_kaggle_notebook_and_this_computer_end_in_the_same_bytes(
    model_and_rows: tuple[Path, Path], unbroken: Run, tmp_path: Path
) -> None:
    """Begun in an emulated Kaggle kernel, continued in an executed notebook, lost on this computer and finished
    there."""
    mixed = mixed_path.train(tmp_path / "mixed", *model_and_rows, 3, "lora", 1)
    assert mixed == replace(unbroken, kills=3)
