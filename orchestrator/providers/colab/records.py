"""What this server keeps of each session in a folder of its own: its machine, how far its log was read, and the log."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.providers.last_words import last_words
from orchestrator.providers.session_records import WRITING, SessionNotes


@dataclass(frozen=True, kw_only=True)
class Session:
    """A launch as it was noted. `launched` says that it was attempted, `machine` that its worker was started there.

    `segment` and `offset` are where reading its log goes on; `ended` with `detail` is how it ended, `complete` that its log lies
    here as far as it can be had, `released` that nothing of it is left at Colab; `failed` that its own error ended it.
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


class Notes(SessionNotes[Session]):
    """One session's folder: `session.json`, `output.log` and, once it has ended, `outbox.jsonl`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Session)
        self.outbox = folder / "outbox.jsonl"

    def keep(self, found: dict[str, Any], detail: str, *, failed: bool) -> Session:
        """Keep what the bridge has read of the log, and note where reading goes on; `detail` and `failed` say how it ended."""
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
        """Remove a file that is not needed any more."""
        (self.folder / name).unlink(missing_ok=True)
