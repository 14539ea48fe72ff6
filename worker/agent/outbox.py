"""Messages to the server: stored on disk first, then delivered in order and retried without limit.

The file `outbox.jsonl` outlives the process. A server that was unreachable finds the undelivered messages there.
While the disk is full, messages wait in memory for room in the file, and are delivered all the same.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from worker.agent.uplink import Refused, ServerAway, Stale, Uplink
from worker.shared.messages import (
    Directive,
    Finish,
    Message,
    Offer,
    OfferReply,
    Release,
    Report,
    Started,
    Ticket,
    merged,
)

MAX_PAUSE_S = 15.0
MAX_TOGETHER = 1 << 18
"""Maximum characters of reports that are merged into one.

The server limits the size of a message and the length of an output line.
"""


class Outbox:
    """Numbers, stores and delivers messages on a thread of its own.

    `beat()` makes the report that is sent if there was no other message for `every_s` seconds. `on_directive`,
    `on_offer` and `on_stale` receive the server's replies on the delivery thread. `next` is the ticket that came with
    the last reply, if any. The file may have the messages of the lease that this session continues.
    """

    def __init__(
        self,
        uplink: Uplink,
        path: Path,
        every_s: float,
        *,
        beat: Callable[[], None],
        on_directive: Callable[[Directive], None],
        on_offer: Callable[[Offer, OfferReply], None],
        on_stale: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._uplink, self._every_s = uplink, every_s
        self.next: Ticket | None = None
        self._beat, self._warn = beat, warn
        self._on_directive, self._on_offer, self._on_stale = on_directive, on_offer, on_stale
        self._file = path.open("ab", buffering=0)
        self._unwritten = bytearray()
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._seq = _lines(path)  # no number twice, because a withdrawn message is named by its number alone
        self._urgent = self._closing = self._over = self._holding = False
        self._thread = threading.Thread(target=self._deliver, name="outbox", daemon=True)

    def open(self) -> None:
        """Start the delivery thread."""
        self._thread.start()

    def hold(self) -> None:
        """Stop sending all messages but reports, and only store them.

        A release must not be applied before a checkpoint that is still on this machine.
        """
        with self._changed:
            self._holding = True

    def add(self, make: Callable[[int], Message], *, urgent: bool = False) -> Message:
        """Store a message under the next number. An `urgent` message is delivered at once."""
        with self._changed:
            self._seq += 1
            message = make(self._seq)
            self._write(message.as_line())
            if isinstance(message, Report) or not self._holding:
                self._waiting.append(message)
            self._urgent |= urgent
            if urgent:
                self._changed.notify_all()
            return message

    def _write(self, line: str) -> None:
        was_full = bool(self._unwritten)
        self._unwritten += line.encode() + b"\n"
        if (error := self._flush()) is not None and not was_full:
            self._warn(f"messages could not be stored on this machine ({error.strerror}); training continues")

    def _flush(self) -> OSError | None:
        """Write what is not in the file yet. A part of a line that was written is not written twice."""
        try:
            while self._unwritten:
                del self._unwritten[: self._file.write(self._unwritten)]
        except OSError as error:
            return error
        return None

    def withdraw(self, offer: Offer) -> None:
        """Withdraw an offer that was not delivered, and record that in the file."""
        with self._changed:
            if offer in self._waiting:
                self._waiting.remove(offer)
            elif not self._holding:
                return
            self._write(json.dumps({"withdrawn": offer.seq}))

    def close(self, timeout_s: float) -> bool:
        """Deliver the remaining messages. False if the server stayed unreachable for `timeout_s` seconds."""
        with self._changed:
            self._closing = self._urgent = True
            self._changed.notify_all()
        self._thread.join(max(0.0, timeout_s))
        with self._changed:
            self._flush()
            if not self._thread.is_alive():
                self._file.close()
        return not self._waiting

    def _deliver(self) -> None:
        pause = 0.0
        while not self._over:
            with self._changed:
                if pause:
                    self._changed.wait(pause)
                else:
                    self._changed.wait_for(lambda: self._urgent or self._closing, self._every_s)
                self._urgent = False
                if self._closing and not self._waiting:
                    return
                self._flush()
            try:
                if not self._waiting:
                    self._beat()
                pause = self._deliver_all(pause)
            except Exception as error:  # noqa: BLE001  without this thread, the server would count the session as lost
                self._warn(f"a message could not be sent now ({type(error).__name__}: {error}); training continues")
                pause = self._longer(pause)

    def _longer(self, pause: float) -> float:
        return min(MAX_PAUSE_S, self._every_s, max(0.5, 2 * pause))

    def _deliver_all(self, pause: float) -> float:
        """Deliver all waiting messages. Returns the seconds to wait before the next attempt."""
        for messages in self._batches():
            try:
                self._send(messages)
            except ServerAway as error:
                if not pause:
                    self._warn(f"the server does not answer ({error}); training continues")
                return self._longer(pause)
            except Stale as error:
                self._over = True
                self._on_stale(str(error))
                return 0.0
            except Refused as error:
                self._warn(f"the server refused a {messages[-1].kind}: {error}")
                if not isinstance(messages[-1], Report):
                    self._over = True
                    self._on_stale(str(error))
                    return 0.0
            with self._changed:
                for message in messages:
                    if self._waiting and self._waiting[0] is message:
                        self._waiting.popleft()
        return 0.0

    def _batches(self) -> Iterator[list[Message]]:
        """Waiting messages, oldest first. Consecutive reports form one batch of at most `MAX_TOGETHER` characters."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                batch = [self._waiting[0]]
                if isinstance(batch[0], Report):
                    size = len(batch[0].as_line())
                    for message in islice(self._waiting, 1, None):
                        if not isinstance(message, Report) or (size := size + len(message.as_line())) > MAX_TOGETHER:
                            break
                        batch.append(message)
            yield batch

    def _send(self, messages: list[Message]) -> None:
        message = messages[0]
        match message:
            case Started():
                self._uplink.started(message)
            case Report():
                self._on_directive(self._uplink.report(merged([m for m in messages if isinstance(m, Report)])))
            case Offer():
                self._on_offer(message, self._uplink.offer(message))
            case Release():
                self._uplink.release(message)
            case Finish():
                self.next = self._uplink.finish(message)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
