"""(e) Installing unsloth at the start of a session, from staged wheels, on a machine that has everything else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from worker.shared import packages


def measure(wheels: Path | None) -> dict[str, Any]:
    """Seconds until it can be imported, and the installed packages. Nothing is installed if it is there already."""
    lacking = packages.missing(gpu=True)
    began = time.monotonic()
    problem = packages.unsloth(wheels)
    return {
        "brought": {name: version for name, version in lacking.items() if packages.installed(name) == version},
        "install_and_import_s": round(time.monotonic() - began, 1),
        "problem": problem,
    }
