"""Downloads from the server. A file appears only when it is complete and verified."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainhop.connection import Connection
from trainhop.errors import Error
from trainhop.own_worker import own_worker

if TYPE_CHECKING:
    from worker.shared.resumable_upload import Patience

WEIGHTS = "adapter_model.safetensors"
EVIDENCE = {"README.md": "card", "trainhop-provenance.json": "provenance"}
"""Files that the server makes when they are read, because an adapter is evaluated after its archive is written."""


def fetch(connection: Connection, path: str, target: Path, sha256: str, patience: Patience | None = None) -> None:
    """Write the body under `path` to `target` if it has this hash. Raises `Error` otherwise.

    If the connection breaks for good or a person interrupts, the received bytes stay beside `target` for the next call.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{sha256[:12]}.part")
    with own_worker():
        _bring(connection, path, aside, patience)
    with aside.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        aside.unlink()
        raise Error(f"The download is damaged: sha256 {found}, expected {sha256}. Try again.")
    aside.replace(target)


def _bring(connection: Connection, path: str, aside: Path, patience: Patience | None) -> None:
    """Resume after each broken connection, as long as new bytes arrive."""
    from worker.shared import ranged_download, resumable_upload

    patience, failures = patience or resumable_upload.Patience(attempts=6, longest_s=8.0), 0
    while True:
        before = _arrived(aside)
        try:
            ranged_download.fetch(lambda headers: connection.stream(path, headers), aside)
        except Error as error:
            have = _arrived(aside)
            if error.reason != "unreachable" or not have:
                raise
            failures = 1 if have > before else failures + 1
            if failures >= patience.attempts:
                kept = f"{have / (1 << 20):.1f} MiB are downloaded. Run the same command again to resume."
                raise Error(*error.lines, kept, reason=error.reason, status=error.status) from None
            patience.pause(failures)
        else:
            return


def _arrived(aside: Path) -> int:
    return aside.stat().st_size if aside.is_file() else 0


def save_adapter(connection: Connection, job: dict[str, Any], out: Path) -> None:
    """Download, verify and unpack the adapter into the new folder `out`. A failure leaves no files."""
    if not job.get("adapter"):
        raise Error(
            f"{job['id']} is {job['state']} and has no adapter yet. Wait until it has succeeded.", reason="not_found"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Error(f"{out} is not an empty folder. Choose another one.", reason="usage")
    archive, aside = out.with_name(f".{out.name}.zip"), out.with_name(f".{out.name}.part")
    try:
        fetch(connection, f"/jobs/{job['id']}/adapter", archive, job["adapter"]["zip_sha256"])
        shutil.rmtree(aside, ignore_errors=True)
        unpack(archive, aside)
        with _archive_errors() as adapter_archive:
            adapter_archive.verify_weights(aside, job["adapter"]["sha256"])
        _add_evidence(connection, job["id"], aside)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)


def _add_evidence(connection: Connection, job_id: str, folder: Path) -> None:
    """Write card and provenance as of now. An older server has neither. The archive has the card of the job's end."""
    for name, path in EVIDENCE.items():
        try:
            content, _ = connection.text(f"/jobs/{job_id}/{path}")
        except Error as error:
            if error.reason != "not_found":
                raise
        else:
            (folder / name).write_bytes(content)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack plain files into the new `folder`. Raises `Error` for links, bombs, and names that lead out of it."""
    with _archive_errors() as adapter_archive:
        adapter_archive.unpack(archive, folder)


@contextmanager
def _archive_errors() -> Generator[ModuleType]:
    with own_worker():
        from worker.shared import adapter_archive

        try:
            yield adapter_archive
        except adapter_archive.ArchiveError as error:
            raise Error(str(error)) from error
