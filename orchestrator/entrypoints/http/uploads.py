"""A request's raw body in a temporary file, flushed to disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from worker.shared.files import flush_to_disk

PIECE_BYTES = 1 << 20


@asynccontextmanager
async def spooled(request: Request, folder: Path) -> AsyncIterator[Path]:
    """The body as a temporary file in `folder`, deleted afterwards. The middleware limits its size."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".incoming-")
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            piece = bytearray()
            async for chunk in request.stream():
                piece += chunk
                if len(piece) >= PIECE_BYTES:
                    await run_in_threadpool(file.write, piece)
                    piece = bytearray()
            await run_in_threadpool(file.write, piece)
            await run_in_threadpool(flush_to_disk, file)
        yield path
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240  one system call
