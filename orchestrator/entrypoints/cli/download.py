"""Files from the server: complete and verified, or not there at all."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect, find_job
from orchestrator.entrypoints.cli.output import JsonFlag, put, put_json, say, size
from orchestrator.entrypoints.cli.phrases import JobArgument

if TYPE_CHECKING:
    from worker.shared.resumable_upload import Patience

app = typer.Typer()

WEIGHTS = "adapter_model.safetensors"
MAX_GROWTH = 200
"""Unpacked bytes per byte of the archive; tensors hardly shrink, so more is an attack on the disk."""
ALLOWANCE_BYTES = 64 << 20


def fetch(client: Client, path: str, target: Path, sha256: str, patience: Patience | None = None) -> None:
    """Write what lies under `path` to `target` if it hashes to `sha256`; raises `CommandError` otherwise.

    What has arrived when the connection breaks for good, or a person interrupts, lies beside `target` for the next call.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{sha256[:12]}.part")
    _bring(client, path, aside, patience)
    with aside.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        aside.unlink()
        raise CommandError(Exit.FAILED, f"what arrived hashes to {found}, expected {sha256}; try again")
    aside.replace(target)


def _bring(client: Client, path: str, aside: Path, patience: Patience | None) -> None:
    """Go on where the connection was cut, for as long as that brings anything."""
    from worker.shared import ranged_download, resumable_upload

    patience, failures = patience or resumable_upload.Patience(attempts=6, longest_s=8.0), 0
    while True:
        before = _arrived(aside)
        try:
            ranged_download.fetch(lambda headers: client.stream(path, headers), aside)
        except CommandError as error:
            have = _arrived(aside)
            if error.code is not Exit.UNREACHABLE or not have:
                raise
            failures = 1 if have > before else failures + 1
            if failures >= patience.attempts:
                raise CommandError(
                    error.code, *error.lines, f"{size(have)} are here; the same command goes on"
                ) from None
            patience.pause(failures)
        else:
            return


def _arrived(aside: Path) -> int:
    return aside.stat().st_size if aside.is_file() else 0


@app.command(rich_help_panel="Records")
def adapter(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder to make.")],
    as_json: JsonFlag = False,
) -> None:
    """Fetch a finished job's adapter as a PEFT folder."""
    client = connect(context)
    found = find_job(client, job)
    save_adapter(client, found, out)
    if as_json:
        put_json({"path": str(out), **found["adapter"]})
    else:
        put(str(out))
        say(f"{WEIGHTS}: sha256 {found['adapter']['sha256']} ({size((out / WEIGHTS).stat().st_size)}), verified")


def save_adapter(client: Client, job: dict[str, Any], out: Path) -> None:
    """Download, verify and unpack the adapter into the new folder `out`; leaves nothing behind if that fails."""
    if not job.get("adapter"):
        raise CommandError(Exit.NOT_FOUND, f"{job['id']} is {job['state']} and has no adapter yet")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(Exit.USAGE, f"{out} exists and is not an empty folder")
    archive, aside = out.with_name(f".{out.name}.zip"), out.with_name(f".{out.name}.part")
    try:
        fetch(client, f"/jobs/{job['id']}/adapter", archive, job["adapter"]["zip_sha256"])
        shutil.rmtree(aside, ignore_errors=True)
        unpack(archive, aside)
        _verify(aside / WEIGHTS, job["adapter"]["sha256"])
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)


def _verify(weights: Path, sha256: str) -> None:
    if not weights.is_file():
        raise CommandError(Exit.FAILED, f"the archive holds no {WEIGHTS}")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CommandError(Exit.FAILED, f"{WEIGHTS} hashes to {found}, expected {sha256}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack plain files into the new `folder`; raises `CommandError` for names that lead elsewhere, links and bombs."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            for entry in entries:
                _refuse_trick(entry)
            limit = archive.stat().st_size * MAX_GROWTH + ALLOWANCE_BYTES
            if sum(e.file_size for e in entries) > limit:
                raise CommandError(Exit.FAILED, f"the archive would unpack to more than {size(limit)}")
            folder.mkdir(parents=True)
            packed.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CommandError(Exit.FAILED, f"the archive is damaged: {error}") from error


def _refuse_trick(entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    odd = name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename
    if odd or (mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0)):
        raise CommandError(Exit.FAILED, f"the archive holds {entry.filename!r}, which is not a plain file inside it")
