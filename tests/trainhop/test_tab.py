"""The cell of somebody who has Colab and nothing else: no server, no Hugging Face token, only their Google Drive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reach.images import cell_in
from tests.images import Image
from worker.shared.packages import TRAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_tab_trains_with_google_drive_alone(image: Callable[[str], Image], installed: Path, tmp_path: Path) -> None:
    machine = image("colab-gpu")
    said = cell_in(machine, installed, tmp_path)
    assert "Shared place: drive://trainhop-exact-lora (there is no Hugging Face token, and Colab can" in said.cell
    assert "Finished at step 4. The adapter is in drive://trainhop-exact-lora/adapter." in said.cell, said.cell
    assert said.changed == ""
    assert machine.packages["transformers"] != TRAIN["transformers"]
