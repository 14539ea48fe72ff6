"""Python imports this at its start on an emulated machine: the machine's worker forks its processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if folder := os.environ.get("TRAINHOP_TESTS_FORK_SERVERS"):
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.helpers import forked_process

    forked_process.install_apart(folder, elsewhere=True)
