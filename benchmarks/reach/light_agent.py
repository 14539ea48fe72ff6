"""`python -m benchmarks.reach.light_agent FOLDER BOOT [URL CODE]`: the real agent, with light sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from worker.joined import agent, joining
from worker.joined.sessions import Sessions

SCRIPT = str(Path(__file__).with_name("light_worker.py"))


def launch(home: Path, variables: Any) -> subprocess.Popen[bytes]:
    """Start a light worker in the folder of its session."""
    with (home / "output.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, SCRIPT, str(home / "ticket.json")],
            cwd=home,
            env=dict(variables),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


if __name__ == "__main__":
    FOLDER, BOOT = Path(sys.argv[1]), sys.argv[2]
    if len(sys.argv) > 3:
        joining.join(FOLDER, sys.argv[3], sys.argv[4], print)
    SESSIONS = Sessions(FOLDER / "sessions", BOOT, launch)
    agent.make(FOLDER, lambda text: print(text, flush=True), sessions=SESSIONS, boot=BOOT).run()
