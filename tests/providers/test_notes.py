"""The log that a driver keeps of a session, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.entrypoints.dashboard import logs
from orchestrator.providers import session_records
from orchestrator.providers.session_records import MARK, MARK_EVERY, SessionNotes

LINES = 10_000


@dataclass(frozen=True)
class Nothing:
    """A note without anything in it."""


@pytest.fixture
def kept(tmp_path: Path) -> SessionNotes[Nothing]:
    """A log of many marks' length, in which every third line is said to the server."""
    made = SessionNotes(tmp_path, Nothing)
    said = (MARK if n % 3 == 0 else b"" for n in range(LINES))
    made.log.write_bytes(b"".join(mark + f"{n:06} {'x' * 90}\n".encode() for n, mark in enumerate(said)))
    return made


def whole(kept: SessionNotes[Nothing]) -> bytes:
    return b"".join(line for line in kept.log.read_bytes().splitlines(keepends=True) if not line.startswith(MARK))


def test_any_part_of_a_log_is_that_of_the_whole(kept: SessionNotes[Nothing]) -> None:
    """Seen failing with places counted without the lines that are hidden, and with marks kept for a log that was written anew."""
    text = whole(kept)
    assert len(text) > 5 * MARK_EVERY
    for offset in (0, 1, MARK_EVERY, MARK_EVERY + 1, 3 * MARK_EVERY - 7, len(text) - 5, len(text), 9 * len(text)):
        assert kept.shown(offset, 3_000) == text[offset : offset + 3_000]
    with kept.log.open("ab") as log:
        log.write((b"y" * 99 + b"\n") * 5_000 + MARK[:3])
    assert kept.shown(len(text) + 400_000, 50) == b"y" * 50
    assert kept.shown(len(text) + 500_000, 50) == b""
    kept.log.write_bytes(b"z" * 3 * MARK_EVERY)
    assert kept.shown(2 * MARK_EVERY, 50) == b"z" * 50


def test_the_end_of_a_long_log_is_found_in_about_one_reading(
    kept: SessionNotes[Nothing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: without `_marks` each of the dozens of questions read the log from its start."""
    looked_at: list[bytes] = []
    is_shown = session_records._is_shown
    monkeypatch.setattr(session_records, "_is_shown", lambda line: looked_at.append(line) or is_shown(line))
    monkeypatch.setattr(logs, "session_output", lambda server, session, at, most: (kept.shown(at, most).decode(), 0))
    most = 10_000
    assert logs._tail_offset(None, {}, most) == len(whole(kept)) - most  # type: ignore[arg-type]
    assert len(looked_at) < 3 * LINES
