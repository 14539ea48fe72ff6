"""A worker as `python -m worker`, with limits of the test's own: `main()` with the arguments TICKET LIMITS."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from worker.agent.limits import Limits
from worker.agent.run import run
from worker.shared.messages import Ticket


def main() -> int:
    """Work off the ticket."""
    path = Path(sys.argv[1])
    ticket = Ticket.model_validate_json(path.read_text())
    return run(ticket, path.parent, began=time.monotonic(), limits=Limits(**json.loads(sys.argv[2])))
