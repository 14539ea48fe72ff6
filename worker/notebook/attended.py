"""`python -m worker.notebook.attended TICKET`: a worker that saves and leaves as soon as its notebook is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading

from worker.__main__ import main


def _leave_with_the_notebook() -> None:
    """The kernel holds the other end of stdin; however it ends, the end of the stream is seen here."""
    while os.read(sys.stdin.fileno(), 4096):  # not through `sys.stdin`, whose lock a finishing interpreter wants
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_leave_with_the_notebook, daemon=True).start()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is said and written; torch's own threads sometimes abort an interpreter that tears itself down.
    os._exit(code)
