"""Run all core benchmarks and store the figures: `python -m benchmarks.collect` writes `results/core.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from worker.agent.hardware import cpu_name, versions

RESULTS = Path(__file__).parent / "results" / "core.json"
PARTS = {
    "orchestrator": ["benchmarks.orchestrator"],
    "dashboard": ["benchmarks.dashboard"],
    "goodput": ["benchmarks.goodput"],
    "exact_resume_lora": ["benchmarks.exact_resume", "--kills", "0,1,5,20"],
    "exact_resume_qlora": ["benchmarks.exact_resume", "--kills", "0,1,5,20", "--adapter", "qlora"],
}


def main() -> None:
    """Run the parts named on the command line, or all. Figures of other parts are kept."""
    wanted = sys.argv[1:] or list(PARTS)
    RESULTS.parent.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in wanted:
        done = subprocess.run(
            [sys.executable, "-m", *PARTS[part], "--json"], stdout=subprocess.PIPE, text=True, check=True
        )
        kept[part] = json.loads(done.stdout.splitlines()[-1])
        kept["machine"] = {"processor": cpu_name(), "cpus": os.cpu_count(), "system": platform.platform()}
        kept["versions"] = versions()
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
