"""The reason why a session failed: the one line of its log that contains the cause."""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_BYTES = 256 << 10
MAX_WORDS = 300
_CANNOT_START = re.compile(r"^trainhop: (cannot start: .+)$", re.MULTILINE)
_PIP = re.compile(r"^(ERROR: (?!pip's dependency resolver does not).+)$", re.MULTILINE)
"""Without what pip says of the packages of an image that do not fit to each other. It installs ours all the same."""
_SEE_LOG = "see the end of the session's log"
"""The start script prints this if the log contains the reason."""
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(: .*)?$", re.MULTILINE)


def last_words(log: Path) -> str:
    """The reason that the start script gave, or pip's, or the last traceback. Empty if the log has none of them."""
    said = _tail(log)
    reasons = _CANNOT_START.findall(said)
    if reasons and _SEE_LOG not in reasons[-1]:
        return shortened(reasons[-1])
    words = _of_the_log(said)
    if reasons:
        return shortened(reasons[-1].replace(_SEE_LOG, words or _SEE_LOG))
    return shortened(words)


def _of_the_log(said: str) -> str:
    if found := _PIP.search(said):
        return found[1]
    _, traceback, rest = said.rpartition(_TRACEBACK)
    found = _EXCEPTION.search(rest) if traceback else None
    return found[0] if found else ""


def shortened(words: str) -> str:
    """External text for a log or a page, as one short line."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())[:MAX_WORDS]


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
