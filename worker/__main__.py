"""`python -m worker TICKET`: one session on this machine. The ticket's folder is where it keeps its files."""

from __future__ import annotations

import os
import sys
import time

BEGAN = time.monotonic()
# Idle OpenMP threads that spin starve whoever shares the processor, and a step then takes many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Read the ticket and work; the process is noted before anything slow is imported."""
    from pathlib import Path

    from worker.shared.process import note_process

    if len(sys.argv) != 2:
        print("usage: python -m worker TICKET.json", file=sys.stderr)
        return 2
    path = Path(sys.argv[1]).resolve()
    note_process(path.parent)
    print(f"worker started at {BEGAN:.3f} (monotonic)", flush=True)
    from worker.agent.session import run
    from worker.shared.messages import Ticket

    return run(Ticket.model_validate_json(path.read_text()), path.parent, began=BEGAN)


if __name__ == "__main__":
    sys.exit(main())
