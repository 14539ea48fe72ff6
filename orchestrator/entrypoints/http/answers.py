"""Answers of a chat as an asynchronous stream. The chat runs in a thread, and ends when nobody reads it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

import structlog

from orchestrator.services.chats import PendingAnswer
from worker.shared.chat import ChatEvent, failed

_log = structlog.get_logger(__name__)


async def events(asked: PendingAnswer) -> AsyncGenerator[ChatEvent]:
    """The events of the answers. Closing the generator cancels them, and the member may ask again once they ended."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[ChatEvent | None] = asyncio.Queue()

    def put(event: ChatEvent | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, event)

    def run() -> None:
        try:
            for event in asked.answer():
                put(event)
        except Exception as error:  # noqa: BLE001  the reader would wait for ever
            _log.exception("a chat failed")
            put(failed(f"the server could not answer ({type(error).__name__})"))
        finally:
            asked.end()
            put(None)

    asked.is_begun = True
    threading.Thread(target=run, name="chat-answer", daemon=True).start()
    try:
        while (event := await arrived.get()) is not None:
            yield event
    finally:
        asked.cancelled.set()
