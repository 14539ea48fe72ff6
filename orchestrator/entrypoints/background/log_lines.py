"""The log of the server: lines on stderr. Nobody waits for them, and no error of the log reaches who logs."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

import structlog

from worker.shared.counted_words import many

MAX_WAITING_BYTES = 4 << 20
"""Maximum bytes of lines that wait for a slow reader. Later lines are dropped and counted."""
RETRY_S = 1.0
"""How often it is tried to tell of lost lines."""
GOODBYE_S = 1.0
"""How long the end of the server waits for the last lines."""


class LogStream(io.TextIOBase):
    """A text stream that a thread of its own writes. `write_bytes` may block or raise `OSError`, this stream does not.

    Its reader may be gone, it may have stopped to read, and the disk of a log file may be full. Lines that cannot be
    written are dropped. A line tells their number as soon as there is room again.
    """

    def __init__(
        self, write_bytes: Callable[[bytes], int], *, most: int = MAX_WAITING_BYTES, retry_s: float = RETRY_S
    ) -> None:
        self._write_bytes, self._most, self._retry_s = write_bytes, most, retry_s
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = self._lost = 0
        self._is_in_line = self._is_torn = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._size + len(data) > self._most:
                self._lost += 1
            else:
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify()
        return len(text)

    def finish(self, timeout_s: float = GOODBYE_S) -> None:
        """Write the remaining lines, and end the thread unless its reader blocks it."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (data := self._next()) is not None:
            written = not data or self._put(data)
            with self._changed:
                self._size -= len(data)
                self._lost += not written
                lost = self._lost if written else 0
            if lost and self._put(f"{many(lost, 'log line')} could not be written\n".encode()):
                with self._changed:
                    self._lost -= lost

    def _next(self) -> bytes | None:
        """The next bytes. Nothing if it is time to tell of lost lines, None at the end."""
        with self._changed:
            pause_s = self._retry_s if self._lost else None
            self._changed.wait_for(lambda: self._waiting or self._is_over, pause_s)
            if self._waiting:
                return self._waiting.popleft()
            return None if self._is_over else b""

    def _put(self, data: bytes) -> bool:
        """Write all bytes. A line that was cut by an earlier error is ended first."""
        left = b"\n" + data if self._is_torn else data
        try:
            while left:
                done = self._write_bytes(left)
                self._is_in_line, left = left[:done][-1:] != b"\n", left[done:]
        except (OSError, ValueError):
            self._is_torn = self._is_in_line
            return False
        self._is_torn = False
        return True


_Logger: Any = structlog.make_filtering_bound_logger(logging.NOTSET)


class SafeLogger(_Logger):
    """A logger without errors: a value that cannot be shown must not end the loop that logs it."""

    def _proxy_to_logger(self, *arguments: Any, **values: Any) -> Any:
        with contextlib.suppress(Exception):
            return super()._proxy_to_logger(*arguments, **values)
        return None


@contextlib.contextmanager
def logging_to(stream: IO[str]) -> Iterator[None]:
    """Log one line per event to stderr, without colours.

    In this block, `sys.stderr` is safe as well, because uvicorn, asyncio and threads that fail write there.
    """
    safe: Any = LogStream(lambda data: os.write(stream.fileno(), data))
    before, sys.stderr = sys.stderr, safe
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=SafeLogger,
        logger_factory=structlog.WriteLoggerFactory(file=safe),
    )
    try:
        yield
    finally:
        sys.stderr = before
        safe.finish()
