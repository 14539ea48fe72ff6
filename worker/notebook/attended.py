"""`python -m worker.notebook.attended TICKET`: a worker that saves and leaves when its notebook ends."""

from __future__ import annotations

import os
import signal
import sys
import threading

from worker.__main__ import main


def leave_with_the_notebook() -> None:
    """Wait for the end of stdin, which the kernel holds open, and then request a graceful stop."""
    while os.read(sys.stdin.fileno(), 4096):  # reading `sys.stdin` would hold its lock at shutdown
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=leave_with_the_notebook, daemon=True).start()
    code = main(can_continue=False)  # the cell shows one job
    sys.stdout.flush()
    sys.stderr.flush()
    # All messages are written. A normal exit is not safe: torch's threads sometimes abort the interpreter.
    os._exit(code)
