"""A chat in a process of its own (`python -m worker.chat`), so that neither server nor command line loads torch."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from worker.shared.chat import ChatEvent, Kind, Question, failed
from worker.shared.chat_limits import MAX_ANSWER_S, MAX_LINE_BYTES
from worker.shared.process import MODEL_VARIABLES, tied, variables

LOAD_S = 900.0
"""For loading a model, with its download where that is allowed."""
GRACE_S = 20.0
"""For the token that is being generated when an answer is cancelled. After it the process is killed."""
_LOOK_EVERY_S = 0.2
_ENDED: tuple[None, ChatEvent] = (None, failed("the chat process ended without an answer; try again"))
_KILLED = failed("the chat process was ended, probably because this computer ran out of memory")


class ChatProcess:
    """Implements `ports.chats.LoadedChat`. It ends with this process, however that ends.

    `base` is None for what the adapter names. With `local_only` nothing is downloaded.
    """

    def __init__(
        self,
        adapter: Path,
        base: str | None,
        *,
        local_only: bool,
        environment: Mapping[str, str] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._opening = {"adapter": str(adapter), "base": base, "local_only": local_only}
        self._environment, self._grace_s = environment, grace_s
        self._events: queue.SimpleQueue[tuple[int | None, ChatEvent]] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._number, self._is_ready, self._is_over = 0, False, False
        self._started = threading.Event()
        # The kernel ends the process with the thread that started it, so that thread stays and reads.
        self._reader = threading.Thread(target=self._run, name="chat", daemon=True)
        self._reader.start()
        self._started.wait()

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._is_over

    def ask(self, question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        if not self._is_ready:
            yield from self._load(cancelled)
            if not self._is_ready:
                return
        self._number += 1
        number, is_over = self._number, False
        self._send({"id": number, "ask": question.model_dump(mode="json")})
        try:
            for event in self._answer(number, MAX_ANSWER_S + self._grace_s, cancelled):
                is_over = event.is_last
                yield event
        finally:
            if not is_over:
                self._cancel(number)

    def close(self) -> None:
        self._is_over = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    def _load(self, cancelled: threading.Event) -> Iterator[ChatEvent]:
        """The events of loading. Cancelling an answer does not stop it: the next question needs the model too."""
        until = time.monotonic() + LOAD_S
        while not cancelled.is_set():
            event = self._next(None, until)
            if event is None:
                continue
            self._is_ready = event.kind is Kind.READY
            yield event
            if event.is_last:
                self.close()
            if event.is_last or self._is_ready:
                return

    def _answer(self, number: int, limit_s: float, cancelled: threading.Event) -> Iterator[ChatEvent]:
        until = time.monotonic() + limit_s
        while not cancelled.is_set():
            event = self._next(number, until)
            if event is not None:
                yield event
                if event.is_last:
                    return

    def _next(self, number: int | None, until: float) -> ChatEvent | None:
        """The next event of this question, None if there is none yet. The last one when the time is over."""
        try:
            found, event = self._events.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            if time.monotonic() < until:
                return None
            self.close()
            return failed("the model took too long, and its process was ended; try again")
        return event if found == number or event is _ENDED[1] or event is _KILLED else None

    def _cancel(self, number: int) -> None:
        self._send({"cancel": number})
        nothing, until = threading.Event(), time.monotonic() + self._grace_s
        with contextlib.suppress(queue.Empty):
            for _ in self._answer(number, max(0.0, until - time.monotonic()), nothing):
                pass

    def _send(self, line: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, which its reader says
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()

    def _run(self) -> None:
        try:
            self._process = subprocess.Popen(
                tied([sys.executable, "-W", "ignore", "-m", "worker.chat"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=None if self._environment is None else dict(self._environment),
                start_new_session=True,  # an interrupt at the terminal ends an answer and not the model
            )
        finally:
            self._started.set()
        self._send(self._opening)
        assert self._process.stdout is not None
        self._read(self._process.stdout)
        self._process.kill()
        code = self._process.wait()
        self._is_over = True
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what was not written is of no use any more
                self._process.stdin.close()
        self._events.put((None, _KILLED) if code < 0 else _ENDED)

    def _read(self, lines: IO[bytes]) -> None:
        with lines, contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            while (line := lines.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                found = json.loads(line)
                self._events.put((found.get("id"), ChatEvent.of(found)))


def without_secrets() -> dict[str, str]:
    """The variables of a chat process on a server, which downloads nothing."""
    paths = [path for path in sys.path if path]
    return variables(*MODEL_VARIABLES) | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
