"""What a test needs beyond the Python environment."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(missing: str) -> NoReturn:
    """Skip the test, or fail it where everything is required. `missing` says what is not there."""
    if os.environ.get("TRAINHOP_REQUIRE_ALL") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
