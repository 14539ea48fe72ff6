"""`python -m worker.joined FOLDER`: the agent of the machine that has its place in this folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from worker.joined import agent
from worker.joined.membership import MachineError
from worker.joined.prepare import Prepared
from worker.joined.server import Left

LEFT = 3
"""Exit code if the server no longer knows this machine. A unit of systemd does not start the agent again then."""


def say(text: str) -> None:
    """Show a line."""
    print(f"trainhop: {text}", flush=True)


def main(folder: Path, checked: Prepared | None = None) -> int:
    """Run the agent until it is told to end. Returns the exit code. `checked` is what a join has found out."""
    try:
        found = agent.make(folder, say, checked=checked)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: found.is_stopped.set())
        say(f"{found.membership.name} works for {found.membership.server}")
        found.run()
    except MachineError as error:
        print(f"trainhop: {error}", file=sys.stderr, flush=True)
        return LEFT if isinstance(error, Left) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
