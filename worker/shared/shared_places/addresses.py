"""Addresses of shared places: `hf://OWNER/NAME`, `drive://FOLDER`, `file:///PATH` or a path."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from worker.shared.files import expanded
from worker.shared.shared_places.errors import RefusedError
from worker.shared.shared_places.local_folder import LocalFolder
from worker.shared.shared_places.place import Place
from worker.shared.shared_places.probe import has_compare_and_swap
from worker.shared.shared_places.retries import Retries, persist
from worker.shared.shared_places.single_writer import NOTE, SingleWriter

KNOWN = "Write hf://OWNER/NAME, drive://FOLDER or the path of a folder"
MAX_FOLDER_NAME = 100
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!\\).*", re.DOTALL)
_MOUNTED_DRIVE = re.compile(
    r"(?:/content/drive|/MyDrive|/My Drive|/GoogleDrive-[^/]+|/\.shortcut-targets-by-id)(?:/|$)"
)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What may be needed to reach a place. Neither is ever part of a message.

    `hub_token` is a token of the Hugging Face Hub; None uses the one that its client finds. `drive_token` returns a
    valid access token for Google Drive each time it is called. The endpoints are addresses of emulators, and
    `drive_settle_s` replaces `google_drive.SETTLE_S` for one.
    """

    hub_token: str | None = None
    drive_token: Callable[[], str] | None = None
    hub_endpoint: str | None = None
    drive_endpoint: str | None = None
    drive_settle_s: float | None = None

    def __repr__(self) -> str:
        return "Credentials(...)"


@dataclass(frozen=True, kw_only=True)
class OpenedPlace:
    """A place that was tried. `note` is a sentence for people about what it cannot do, or empty."""

    place: Place
    note: str = ""


def open_place(
    address: str,
    credentials: Credentials | None = None,
    *,
    retries: Retries | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> OpenedPlace:
    """The place at this address, created if it is missing. Tries whether it can be written to.

    Raises `RefusedError` with a sentence for people if it cannot be used.
    """
    retries, known = retries or Retries(), credentials or Credentials()
    place = persist(lambda: find_place(address, known, sleep=sleep), retries, clock=clock, sleep=sleep)
    if has_compare_and_swap(place, retries, clock=clock, sleep=sleep):
        return OpenedPlace(place=place)
    return OpenedPlace(place=SingleWriter(place), note=NOTE)


def find_place(address: str, credentials: Credentials, *, sleep: Callable[[float], None] = time.sleep) -> Place:
    """The place at this address, not tried. Raises `RefusedError` for an address that cannot be one."""
    address = address.strip()
    found = _SCHEME.fullmatch(address)
    scheme = found[1].lower() if found else ""
    if scheme in ("", "file"):
        return LocalFolder(_folder(address))
    named = address.partition(":")[2].removeprefix("//").strip("/")
    if scheme == "hf":
        from worker.shared.shared_places.hub import HubRepository

        return HubRepository(named, token=credentials.hub_token, endpoint=credentials.hub_endpoint)
    if scheme == "drive":
        return _drive(named, credentials, sleep)
    raise RefusedError(f"{scheme}:// is not a kind of shared place. {KNOWN}")


def _drive(folder: str, credentials: Credentials, sleep: Callable[[float], None]) -> Place:
    if not folder or "/" in folder or len(folder) > MAX_FOLDER_NAME or not folder.isprintable():
        raise RefusedError(f"write drive://FOLDER with the name of one folder of at most {MAX_FOLDER_NAME} characters")
    if credentials.drive_token is None:
        raise RefusedError("drive:// needs a sign-in to Google. Run it in a notebook that can sign you in")
    from worker.shared.shared_places.google_drive import SETTLE_S, DriveFolder

    asked = credentials.drive_settle_s
    settle_s = SETTLE_S if asked is None else asked
    return DriveFolder(
        unquote(folder), credentials.drive_token, endpoint=credentials.drive_endpoint, sleep=sleep, settle_s=settle_s
    )


def _folder(address: str) -> Path:
    if not address:
        raise RefusedError(f"the address of the shared place is empty. {KNOWN}")
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise RefusedError(f"{address} names another computer. Write file:///PATH with three slashes")
    folder = expanded(unquote(parts.path) if parts.scheme == "file" else address)
    refuse_mounted_drive(folder)
    return folder


def refuse_mounted_drive(folder: Path, mounts: str | None = None) -> None:
    """Raise `RefusedError` for a folder of Google Drive's mount. `mounts` has the form of `/proc/mounts`."""
    path = folder.absolute()
    if _MOUNTED_DRIVE.search(path.as_posix()) or "drive" in _file_system(path, _mounts() if mounts is None else mounts):
        raise RefusedError(
            f"{folder} is a mounted Google Drive. It uploads later, and machines see different contents, so it cannot "
            "decide who continues a run. Write drive://FOLDER, which uses Google Drive directly"
        )


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text()
    except OSError:
        return ""


def _file_system(path: PurePath, mounts: str) -> str:
    """Source and type of the FUSE file system that contains the path. Empty for any other file system."""
    best, found = -1, ""
    for line in mounts.splitlines():
        source, point, kind, *_ = [*line.split(), "", "", ""]
        point = point.replace("\\040", " ")
        if point and path.is_relative_to(point) and len(point) > best:
            best, found = len(point), f"{source} {kind}" if kind.startswith("fuse") else ""
    return found.lower()
