"""What this server keeps of each session in a folder of its own: its machine, how far its log was read, and the log."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from worker.protocol import LINE_MARK

_WRITING = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Session:
    """A launch as it was noted. `launched` says that it was attempted, `machine` that its worker was started there.

    `segment` and `offset` are where reading its log goes on; `ended` with `detail` is how it ended, `complete` that its log lies
    here as far as it can be had, `released` that nothing of it is left at Colab.
    """

    launched: bool = False
    machine: str = ""
    accelerator: str = ""
    segment: int = 0
    offset: int = 0
    ended: bool = False
    detail: str = ""
    complete: bool = False
    released: bool = False


class Notes:
    """One session's folder: `session.json`, `output.log` and, once it has ended, `outbox.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.outbox = folder / "output.log", folder / "outbox.jsonl"

    def read(self) -> Session:
        """What was noted; nothing for a session that was not launched from here."""
        try:
            return Session(**json.loads((self.folder / "session.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return Session()

    def write(self, **changes: object) -> Session:
        """Note something more, whole or not at all."""
        with _WRITING:
            noted = replace(self.read(), **changes)  # pyright: ignore[reportArgumentType]
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self.folder / ".session.json"
            aside.write_text(json.dumps(asdict(noted)))
            aside.replace(self.folder / "session.json")
        return noted

    def keep(self, found: dict[str, Any], detail: str) -> Session:
        """Keep what the bridge has read of the log, and note where reading goes on; `detail` is how the session ended."""
        ended = found["ended"] is not None
        with _WRITING:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                log.write(base64.b64decode(found["text"]))
            if found["outbox"] is not None:
                self.outbox.write_bytes(base64.b64decode(found["outbox"]))
            changes = {"ended": True, "complete": True, "detail": detail} if ended else {}
            return self.write(launched=True, segment=found["segment"], offset=found["offset"], **changes)

    def shown(self, offset: int, limit: int) -> bytes:
        """A part of the log as a person reads it: without the lines that are said to the server."""
        found, at = bytearray(), 0
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            for line in log:
                if line.startswith(LINE_MARK.encode()):
                    continue
                found += line[max(0, offset - at) :]
                at += len(line)
                if len(found) >= limit:
                    break
        return bytes(found[:limit])

    def drop(self, name: str) -> None:
        """Remove a file that is not needed any more."""
        (self.folder / name).unlink(missing_ok=True)
