"""The benchmark of a failing Drive in small, and its audit, which must see whatever is wrong."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from benchmarks import store_faults

ZEROS = {"torn": 0, "lost": 0, "duplicates": 0, "orphans_referenced": 0}


def test_nothing_is_torn_lost_or_doubled(tmp_path: Path) -> None:
    """Then one thing after another is broken by hand; each is found.

    Guard: without the comparison in `worker.agent.transfers._send` a truncated file was offered and refused, which ends
    the run.
    """
    done = store_faults.commit(tmp_path, 60, per_job=20)
    drive, database = tmp_path / store_faults.DRIVE, tmp_path / store_faults.DATABASE
    journal = drive / "journal.jsonl"
    whole = journal.read_text()

    def counts() -> dict[str, int]:
        return store_faults.audit(drive, database, done)

    assert counts() == {"uploads": 60, **ZEROS}

    with sqlite3.connect(database) as connection:
        sha256, ident = connection.execute(
            "SELECT c.sha256, o.external_id FROM checkpoints c JOIN store_objects o ON o.key = c.key "
            "WHERE c.state = 'committed'"
        ).fetchone()
    file = next(f for f in map(_file, reversed(whole.splitlines())) if f.get("id") == ident)
    blob = drive / "blobs" / ident / file["revision"]
    good = blob.read_bytes()
    blob.write_bytes(good[:-1])
    assert counts() == {"uploads": 60, **ZEROS, "torn": 1}
    blob.write_bytes(good)

    def added(**entry: Any) -> dict[str, int]:
        journal.write_text(whole + json.dumps(entry) + "\n")
        return counts()

    assert added(gone=ident) == {"uploads": 60, **ZEROS, "lost": 1, "orphans_referenced": 1}
    assert added(file=file | {"id": "another"}) == {"uploads": 60, **ZEROS, "duplicates": 1}
    assert added(file=file | {"planted": True})["orphans_referenced"] == 1
    assert added(file=file | {"trashed": True})["orphans_referenced"] == 1
    journal.write_text(whole)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE checkpoints SET state = 'abandoned' WHERE sha256 = ?", [sha256])
    connection.close()
    assert counts() == {"uploads": 60, **ZEROS, "lost": 1}


def _file(line: str) -> dict[str, Any]:
    return json.loads(line).get("file", {})
