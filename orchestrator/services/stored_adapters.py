"""Reads a job's adapter from its store into a folder, and compares it with the hashes that it was sent with."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from orchestrator.domain.jobs import Job
from orchestrator.services.context import Context
from worker.shared.adapter_archive import ArchiveError, unpack, unpacked_bytes, verify_weights

SPARE_BYTES = 256 << 20
"""Stay free on the disk."""


def unpack_adapter(ctx: Context, job: Job, folder: Path, spare_bytes: int = SPARE_BYTES) -> Path:
    """The PEFT folder of a finished job, in `folder`. Raises `ArchiveError`, `StoreError` or `OSError`."""
    archive, adapter = folder / "adapter.zip", folder / "adapter"
    _refuse_full_disk(folder, (job.adapter_bytes or 0) + spare_bytes)
    _download(ctx, job, archive)
    _refuse_full_disk(folder, unpacked_bytes(archive) + spare_bytes)
    unpack(archive, adapter)
    archive.unlink()
    verify_weights(adapter, job.adapter_sha256 or "")
    return adapter


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        words = f"The adapter needs {needed >> 20} MiB on the server's disk, and {free >> 20} MiB are free."
        raise ArchiveError(f"{words} Make room there.")


def _download(ctx: Context, job: Job, archive: Path) -> None:
    """Read the archive, never more than its size."""
    found, left = hashlib.sha256(), job.adapter_bytes or 0
    with archive.open("wb") as file:
        for piece in ctx.stores.get(job.adapter_store or "").read(job.adapter_key or ""):
            left -= len(piece)
            if left < 0:
                break
            file.write(piece)
            found.update(piece)
    if left or found.hexdigest() != job.adapter_zip_sha256:
        raise ArchiveError(f"The adapter of job {job.id} is damaged in its store.")
