"""`python -m worker TICKET`: run one session on this machine. The session's files are in the ticket's folder."""

from __future__ import annotations

import os
import sys
import time

BEGAN = time.monotonic()
# Spinning idle OpenMP threads take the CPU from other processes, and a step then takes many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(*, can_continue: bool = True) -> int:
    """Read the ticket and run the session. Records the process before any slow import.

    `can_continue`: whether another lease may replace this process.
    """
    from pathlib import Path

    from worker.agent.streams import protect
    from worker.shared.process import note_process

    protect()
    if len(sys.argv) != 2:
        print("usage: python -m worker TICKET.json", file=sys.stderr)
        return 2
    path = Path(sys.argv[1]).resolve()
    note_process(path.parent)
    print(f"worker started at {BEGAN:.3f} (monotonic)", flush=True)
    from worker.agent.run import run
    from worker.shared.messages import Ticket

    return run(Ticket.model_validate_json(path.read_text()), path.parent, began=BEGAN, can_continue=can_continue)


if __name__ == "__main__":
    code = main()
    from worker.shared.process import leave

    leave(code)
