"""What pip says when it fails, as one sentence with a remedy.

Its last line is the least of it: of a conflict it names a web page, of an index that is away a package.
"""

from __future__ import annotations

import re

from worker.shared import causes

LONGEST = 800
"""Characters of a sentence."""
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_CONFLICT = "The conflict is caused by:"


def why(said: str) -> tuple[str, str]:
    """The sentence, and which of `worker.shared.causes` it is."""
    if any(words in said for words in _FULL):
        return "the disk of this machine is full: free some of it, or use a machine with a larger one", causes.DISK
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    if "connection broken by" in said and "from versions: none" in said:
        return f"pip's index cannot be reached from this machine ({_break(said)}): see that it has internet access", (
            causes.INSTALL
        )
    first = (errors or [line for line in said.strip().splitlines() if line.strip()][-1:] or ["no reason was given"])[0]
    if conflict := _conflict(said):
        first = f"{first} {_CONFLICT} {'; '.join(conflict)}"
    return f"pip says: {first[:LONGEST]}", causes.INSTALL


def _conflict(said: str) -> list[str]:
    """The lines that say who wants what."""
    found: list[str] = []
    for line in said.partition(_CONFLICT)[2].lstrip("\n").splitlines():
        if not line.strip():
            break
        found.append(line.strip())
    return found


def _break(said: str) -> str:
    """The system's own words for what broke the connection."""
    words = re.search(r"\[Errno -?\d+\] ([\w ]+)|(timed out)", said)
    return next(filter(None, words.groups()), "no answer") if words else "no answer"
