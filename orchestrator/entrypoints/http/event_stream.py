"""Events as they happen. One look at the database serves every open stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from fastapi.sse import ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.adapters.database.queries import Row
from orchestrator.entrypoints.api import responses

LOOK_EVERY_S = 0.25
EVENTS_AT_ONCE = 500


class EventNotifier:
    """Tells open streams that there are new events; looks only while somebody listens."""

    def __init__(self, newest: Callable[[], int]) -> None:
        self._newest = newest
        self._seen = -1
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._listeners = 0

    @property
    def newest(self) -> int:
        """The newest event's id at the last look."""
        return self._seen

    async def wait(self, after: int) -> None:
        """Return once there is an event with a larger id than `after`."""
        self._listeners += 1
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            while self._seen <= after:
                await self._changed.wait()
        finally:
            self._listeners -= 1

    async def _look(self) -> None:
        while self._listeners:
            try:
                newest = await asyncio.to_thread(self._newest)
            except SQLAlchemyError:
                newest = self._seen  # streams stay open while the database is away
            if newest != self._seen:
                self._seen = newest
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(LOOK_EVERY_S)


async def stream(pulse: EventNotifier, read: Callable[[int], list[Row]], after: int) -> AsyncIterator[ServerSentEvent]:
    """Events after id `after`, then every new one; `read(after)` returns up to `EVENTS_AT_ONCE` of them, oldest first."""
    looked = after
    while True:
        await pulse.wait(looked)
        newest = pulse.newest
        while rows := await asyncio.to_thread(read, after):
            for row in rows:
                event = responses.Event.model_validate(row)
                yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.kind, id=str(event.id))
                after = event.id
        looked = max(looked, newest, after)
