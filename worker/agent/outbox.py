"""Messages to the server: written down first, then delivered in order, for as long as it takes.

The file `outbox.jsonl` outlives the process, so that a server which was away finds there whatever was never delivered.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from worker.agent.uplink import Refused, ServerAway, Stale, Uplink
from worker.shared.messages import Directive, Finish, Message, Offer, OfferReply, Release, Report, Started, merged

MAX_PAUSE_S = 15.0
MAX_TOGETHER = 1 << 18
"""Characters of reports that go as one: the server takes no message of any size, nor a longer line of an output."""


class Outbox:
    """Numbers, keeps and delivers messages on a thread of its own.

    `beat()` makes the report that is sent when nothing else was said for `every_s`; `on_directive`, `on_offer` and
    `on_stale` hear the answers, on the delivering thread.
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
        complain: Callable[[str], None],
    ) -> None:
        self._uplink, self._every_s = uplink, every_s
        self._beat, self._complain = beat, complain
        self._on_directive, self._on_offer, self._on_stale = on_directive, on_offer, on_stale
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._seq = 0
        self._urgent = self._closing = self._over = self._holding = False
        self._thread = threading.Thread(target=self._deliver, name="outbox", daemon=True)

    def open(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def hold(self) -> None:
        """From now on write down only, except reports: a goodbye must not overtake a checkpoint that is still here."""
        with self._changed:
            self._holding = True

    def say(self, make: Callable[[int], Message], *, urgent: bool = False) -> Message:
        """Write a message down under the next number; `urgent` ones are delivered at once."""
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
        self._file.write(line + "\n")
        self._file.flush()

    def withdraw(self, offer: Offer) -> None:
        """Take back an offer that has not been delivered, and say so to whoever reads the file."""
        with self._changed:
            if offer in self._waiting:
                self._waiting.remove(offer)
            elif not self._holding:
                return
            self._write(json.dumps({"withdrawn": offer.seq}))

    def close(self, timeout_s: float) -> bool:
        """Deliver what is left; False if the server stayed away for `timeout_s`."""
        with self._changed:
            self._closing = self._urgent = True
            self._changed.notify_all()
        self._thread.join(max(0.0, timeout_s))
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
            if not self._waiting:
                self._beat()
            pause = self._empty(pause)

    def _empty(self, pause: float) -> float:
        """Deliver everything that waits; returns how long to rest before the next try."""
        for messages in self._batches():
            try:
                self._send(messages)
            except ServerAway as error:
                if not pause:
                    self._complain(f"the server does not answer ({error}); working on")
                return min(MAX_PAUSE_S, self._every_s, max(0.5, 2 * pause))
            except Stale as error:
                self._over = True
                self._on_stale(str(error))
                return 0.0
            except Refused as error:
                self._complain(f"the server refused a {messages[-1].kind}: {error}")
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
        """What waits, oldest first; neighbouring reports go as one, up to `MAX_TOGETHER`."""
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
                self._uplink.finish(message)
