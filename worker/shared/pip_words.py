"""Turns pip's output after a failure into one sentence with a remedy.

pip's last line is not useful: for a conflict it names a web page, for an unreachable index a package.
"""

from __future__ import annotations

import re

from worker.shared import causes

LONGEST = 800
"""Maximum characters of a sentence."""
FULL_DISK = "the disk of this machine is full; free some space, or use a machine with a larger disk"
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_CONFLICT = "The conflict is caused by:"


def why(output: str) -> tuple[str, str]:
    """The sentence, and its cause from `worker.shared.causes`."""
    if any(words in output for words in _FULL):
        return FULL_DISK, causes.DISK
    errors = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    if "connection broken by" in output and "from versions: none" in output:
        away = f"pip's index cannot be reached from this machine ({_break(output)})"
        return f"{away}; check that it has internet access, then retry the job", causes.INSTALL
    first = (errors or [line for line in output.strip().splitlines() if line.strip()][-1:] or ["no reason was given"])[
        0
    ]
    first = first.rstrip(".")
    if conflict := _conflict(output):
        first = f"{first} ({'; '.join(conflict)})"
    return f"pip says: {first[:LONGEST]}: update trainhop, then retry the job", causes.INSTALL


def _conflict(output: str) -> list[str]:
    """The lines that name the conflicting requirements."""
    found: list[str] = []
    for line in output.partition(_CONFLICT)[2].lstrip("\n").splitlines():
        if not line.strip():
            break
        found.append(line.strip())
    return found


def _break(output: str) -> str:
    """The system's message for the broken connection."""
    words = re.search(r"\[Errno -?\d+\] ([\w ]+)|(timed out)", output)
    return next(filter(None, words.groups()), "no answer") if words else "no answer"
