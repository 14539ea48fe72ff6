"""The output of a worker: a line that cannot be written never ends training.

The log of a session may be on the disk that its checkpoints have filled, and a pipe may have lost its reader.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import IO, Any


class SafeOutput(io.TextIOBase):
    """A text stream that drops what `stream` does not take."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def protect() -> None:
    """Make `print`, warnings and other libraries safe in this process. `sys.__stdout__` still raises errors."""
    streams: Any = sys
    streams.stdout, streams.stderr = SafeOutput(sys.stdout), SafeOutput(sys.stderr)
