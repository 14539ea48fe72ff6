"""(e) Bringing in unsloth when a session starts on a machine that has everything else, from staged wheels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from worker.shared import packages


def measure(wheels: Path | None) -> dict[str, Any]:
    """Seconds until it can be imported, and what was installed; where it is there already, nothing is."""
    lacking = packages.missing(gpu=True)
    began = time.monotonic()
    problem = packages.unsloth(wheels)
    return {
        "brought": {name: version for name, version in lacking.items() if packages.installed(name) == version},
        "install_and_import_s": round(time.monotonic() - began, 1),
        "problem": problem,
    }
