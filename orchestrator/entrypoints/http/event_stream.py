"""Event streams. One database poll serves all open streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from fastapi.sse import ServerSentEvent

from orchestrator.adapters.database.queries import Row
from orchestrator.entrypoints.api import responses

LOOK_EVERY_S = 0.25
EVENTS_AT_ONCE = 500


class EventNotifier:
    """Notifies open streams of new events. Polls only while a stream is open."""

    def __init__(self, newest: Callable[[], int]) -> None:
        self._newest = newest
        self._seen = -1
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._listeners = 0
        self.is_closed = False

    def close(self) -> None:
        """End all streams: the server stops. Call it on the event loop."""
        self.is_closed = True
        self._changed.set()

    @property
    def newest(self) -> int:
        """The id of the newest event at the last poll."""
        return self._seen

    async def wait(self, after: int) -> None:
        """Wait for an event with an id larger than `after`, or for the end of the server."""
        self._listeners += 1
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            while self._seen <= after and not self.is_closed:
                await self._changed.wait()
        finally:
            self._listeners -= 1

    async def _look(self) -> None:
        while self._listeners:
            try:
                newest = await asyncio.to_thread(self._newest)
            except Exception:  # noqa: BLE001  the database may not answer, and threads may be short
                newest = self._seen  # streams stay open meanwhile
            if newest != self._seen:
                self._seen = newest
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(LOOK_EVERY_S)


async def stream(
    notifier: EventNotifier, read: Callable[[int], list[Row]], after: int
) -> AsyncIterator[ServerSentEvent]:
    """Events after id `after`, then new ones. `read(after)` returns up to `EVENTS_AT_ONCE` events, oldest first."""
    looked = after
    while True:
        await notifier.wait(looked)
        if notifier.is_closed:
            return
        newest = notifier.newest
        while rows := await asyncio.to_thread(read, after):
            for row in rows:
                event = responses.Event.model_validate(row)
                yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.kind, id=str(event.id))
                after = event.id
        looked = max(looked, newest, after)
