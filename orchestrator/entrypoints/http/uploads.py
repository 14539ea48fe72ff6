"""A request's raw body in a temporary file, flushed to disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool

PIECE_BYTES = 1 << 20


@asynccontextmanager
async def spooled(request: Request, folder: Path) -> AsyncIterator[Path]:
    """The body as a file in `folder`, gone afterwards. Its size is limited by the gate that every request passes."""
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
            await run_in_threadpool(_to_disk, file)
        yield path
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240  one system call


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
