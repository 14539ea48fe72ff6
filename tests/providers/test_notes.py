"""The log that a driver keeps of a session, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.entrypoints.dashboard import logs
from orchestrator.providers import session_records
from orchestrator.providers.session_records import MARK, MARK_EVERY, MAX_OUTBOX, SessionNotes, left_messages

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
    """Seen failing with places counted without the lines that are hidden, and with marks kept for a log that was
    written anew."""
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


def test_a_message_behind_a_progress_bar_is_hidden_and_what_was_seen_stays(tmp_path: Path) -> None:
    """Guards: with marks looked for only where a line begins, people read a message behind a progress bar, which ends
    without a line's end; with an unfinished line shown whole, its message was seen and taken back."""
    kept = SessionNotes(tmp_path, Nothing)
    message = MARK + b"0a" * 32 + b' {"kind": "report"}\n'
    log = b"Loading 50%\r" + message + b"\r    \r" + message + b"mail me@trainhop please\n  \n" + message + b"end @tra"
    seen = b""
    for size in range(len(log) + 1):
        kept.log.write_bytes(log[:size])
        now = kept.shown(0, len(log))
        assert now.startswith(seen), log[:size]
        seen = now
    assert seen == b"Loading 50%\r\nmail me@trainhop please\n  \nend "


def test_the_end_of_a_long_log_is_found_in_about_one_reading(kept: SessionNotes[Nothing]) -> None:
    """Guard: without `_marks` each of the dozens of questions read the log from its start."""
    most, before = 10_000, session_records._marks.cache_info()
    found = logs.tail_offset(lambda at, limit: kept.shown(at, limit).decode(), most)
    assert found == len(whole(kept)) - most
    after = session_records._marks.cache_info()
    assert (after.misses - before.misses, after.hits > before.hits) == (1, True)


def test_of_a_huge_outbox_only_the_front_is_read(tmp_path: Path) -> None:
    """Seen failing without the maximum."""
    outbox = tmp_path / "outbox.jsonl"
    assert left_messages(outbox) == ()
    with outbox.open("wb") as file:
        file.write(b"first\n")
        file.truncate(MAX_OUTBOX + 1)
    first, rest = left_messages(outbox)
    assert (first, len(rest)) == ("first", MAX_OUTBOX - len("first\n"))
