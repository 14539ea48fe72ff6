"""Uploads in temporary files: a request's raw body, and the file of a form."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

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


@contextmanager
def copied(file: UploadFile, folder: Path) -> Iterator[Path]:
    """The file of a form as a temporary file in `folder`, deleted afterwards."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".incoming-") as copy:
        while chunk := file.file.read(PIECE_BYTES):
            copy.write(chunk)
        copy.flush()
        yield Path(copy.name)
