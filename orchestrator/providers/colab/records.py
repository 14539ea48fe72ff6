"""The files of each session on this server: its machine, its log, and how far the log was read."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.providers.last_words import last_words
from orchestrator.providers.session_records import WRITING, SessionNotes


@dataclass(frozen=True, kw_only=True)
class RuntimeRecord:
    """The record of a launch. `launched` is set before the launch, `machine` once the worker was started there.

    Reading the log resumes at `segment` and `offset`. `ended` and `detail` tell how the session ended. `complete` is
    set once the log is here as far as it can be read. `released` is set once nothing is left at Colab. `failed` is set
    if the worker's own error ended the session.
    """

    launched: bool = False
    machine: str = ""
    accelerator: str = ""
    segment: int = 0
    offset: int = 0
    ended: bool = False
    detail: str = ""
    failed: bool = False
    complete: bool = False
    released: bool = False


class RuntimeNotes(SessionNotes[RuntimeRecord]):
    """One session's folder: `session.json`, `output.log` and, once it has ended, `outbox.jsonl`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, RuntimeRecord)
        self.outbox = folder / "outbox.jsonl"

    def keep(self, found: dict[str, Any], detail: str, *, failed: bool) -> RuntimeRecord:
        """Store the log that the bridge has read, and the position at which reading resumes.

        `detail` and `failed` tell how the session ended.
        """
        ended = found["ended"] is not None
        with WRITING:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                log.write(base64.b64decode(found["text"]))
            if found["outbox"] is not None:
                self.outbox.write_bytes(base64.b64decode(found["outbox"]))
            if detail and (words := last_words(self.log)) and words not in detail:
                detail = f"{detail}: {words}"
            changes = {"ended": True, "complete": True, "detail": detail, "failed": failed} if ended else {}
            return self.write(launched=True, segment=found["segment"], offset=found["offset"], **changes)

    def drop(self, name: str) -> None:
        """Remove a file that is no longer needed."""
        (self.folder / name).unlink(missing_ok=True)
