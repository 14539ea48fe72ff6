"""The student's story in a browser: from an empty data folder to a 7B-shaped job on emulated Kaggle with Drive."""

from __future__ import annotations

import pytest

from benchmarks.front_door.clicks import clicks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_from_nothing_to_a_running_job_in_the_browser(chromium, tmp_path):
    """What `python -m benchmarks.front_door --only clicks` measures."""
    assert [figure for figure in clicks(tmp_path, chromium) if not figure.ok] == []
