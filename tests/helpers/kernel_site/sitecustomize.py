"""Python imports this at its start on an emulated machine: the machine's worker forks its processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).parents[3])

if folder := os.environ.get("TRAINHOP_TESTS_FORK_SERVERS"):
    sys.path.insert(0, _ROOT)
    from tests.helpers import forked_process

    forked_process.install(Path(folder), elsewhere=True)
    sys.path.remove(_ROOT)
    # The machine has a worker of its own.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "worker")]:
        del sys.modules[name]
