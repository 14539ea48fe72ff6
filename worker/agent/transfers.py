"""Reads and writes the file that a grant allows: by path on the server's own machine, by URL elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from http.client import REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path

import httpx

from worker.agent.uplink import Refused, ServerAway, Stale, UplinkError, detail_of, is_ours
from worker.shared import resumable_upload
from worker.shared.certificates import certificates
from worker.shared.files import move_into_place
from worker.shared.messages import GRANT_HEADER, Grant
from worker.shared.ranged_download import fetch

TIMEOUT_S = 300.0
CONNECT_S = 30.0
STALL_S = 120.0
"""Seconds without a byte after which a download counts as interrupted."""
CHUNK_BYTES = 1 << 20
_GONE = frozenset({401, 403, 404, 409, 410})
_LOST = _GONE - {401}
_TAKEN = 409
"""Status of a repeated upload: an earlier attempt arrived, and the address now belongs to another file."""


class DamagedError(Exception):
    """The bytes do not match the grant. `sha256` is the expected hash."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class NotTaken(ServerAway):
    """The file was sent, and the store did not take it. Sending it again costs as much."""


class UnusableGrant(NotTaken):
    """This grant will never accept the file. Another grant may."""


class AddressRefused(UnusableGrant):
    """The store refuses the grant's address, for example because it wants a sign-in, which no worker has."""


def probe(grant: Grant) -> bool:
    """Whether an upload through this grant should work from this machine."""
    return (
        resumable_upload.probe(grant.url or "") if grant.resumable else grant.path is not None or grant.url is not None
    )


def upload(
    grant: Grant, source: Path, patience: resumable_upload.Patience | None = None, *, timeout_s: float = TIMEOUT_S
) -> None:
    """Bring a finished file to its place, whole or not at all.

    A store that takes files in one piece may be silent for `timeout_s`. Raises `OSError` or an `UplinkError`.
    """
    if grant.path is not None:
        _place(source, Path(grant.path))
    elif grant.resumable:
        _send(grant, source, patience)
    else:
        _put(grant, source, timeout_s)


def _send(grant: Grant, source: Path, patience: resumable_upload.Patience | None) -> None:
    """Upload through a resumable session, and compare the store's size and hash with the file."""
    try:
        stored = resumable_upload.send(grant.url or "", source, patience=patience)
    except resumable_upload.SessionFull as error:
        raise UnusableGrant(f"upload of {grant.key}: {error}") from error
    except resumable_upload.SessionGone as error:
        raise AddressRefused(f"upload of {grant.key}: {error}") from error
    except resumable_upload.SessionAway as error:
        raise NotTaken(f"upload of {grant.key}: {error}") from error
    size = source.stat().st_size
    if int(stored.get("fileSize", size)) != size:
        raise UnusableGrant(f"upload of {grant.key}: {stored['fileSize']} of {size} bytes arrived")
    if "sha256Checksum" in stored:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if stored["sha256Checksum"] != digest:
            raise UnusableGrant(f"upload of {grant.key}: the stored bytes differ from the sent ones")


def _put(grant: Grant, source: Path, timeout_s: float) -> None:
    try:
        with source.open("rb") as file:
            response = httpx.put(
                grant.url or "", content=file, headers=grant.headers, timeout=timeout_s, trust_env=False
            )
    except httpx.HTTPError as error:
        raise ServerAway(_connection_error("upload", grant, error)) from None
    if response.status_code == _TAKEN:
        raise UnusableGrant(f"upload of {grant.key}: the file already exists")
    if not response.is_success:
        raise _refusal(grant, response)


def _refusal(grant: Grant, response: httpx.Response) -> UplinkError:
    """The server's own words. Another store's page is not quoted, because it may repeat the address."""
    status, ours = response.status_code, is_ours(response)
    words = f"upload of {grant.key}: {detail_of(response) if ours else f'HTTP {status}'}"
    if status in resumable_upload.RETRY or status >= 500:
        return NotTaken(words)
    if not ours:
        return AddressRefused(words)
    return Stale(words) if status in _GONE else Refused(words)


def _place(source: Path, target: Path) -> None:
    """Hard-link the file into place. On another disk, copy to a temporary name, flush and rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_path(target)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    move_into_place(partial, target)


def download(grant: Grant, target: Path, stall_s: float = STALL_S) -> Path:
    """The granted file on this machine, checked against its sha256.

    Raises `DamagedError`, `OSError` or an `UplinkError`. After `stall_s` seconds without a byte it raises `ServerAway`,
    and the next call resumes the download.
    """
    path, in_parts = (Path(grant.path), False) if grant.path is not None else (target, _fetch(grant, target, stall_s))
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise DamagedError(f"{grant.kind} {grant.key} is no longer in the store", grant.sha256 or "") from error
    if grant.sha256 is not None and digest.hexdigest() != grant.sha256:
        if in_parts:
            raise ServerAway(f"download of {grant.key}: its parts do not fit together")
        raise DamagedError(
            f"{grant.kind} {grant.key} is damaged: sha256 {digest.hexdigest()[:12]}, expected {grant.sha256[:12]}",
            grant.sha256,
        )
    return path


def arrived(target: Path) -> int:
    """Bytes of an unfinished download to `target` that have arrived."""
    partial = _partial_path(target)
    return partial.stat().st_size if partial.is_file() else 0


def _partial_path(target: Path) -> Path:
    return target.with_name(f".incoming-{target.name}")


def _fetch(grant: Grant, target: Path, stall_s: float) -> bool:
    """Download to `target`, resuming an earlier attempt. True if the file came in several parts."""
    partial = _partial_path(target)
    try:
        in_parts = fetch(lambda headers: _reading(grant, headers, stall_s), partial)
    except httpx.HTTPError as error:
        raise ServerAway(_connection_error("download", grant, error)) from None
    move_into_place(partial, target, durable=False)
    return in_parts


@contextlib.contextmanager
def _reading(grant: Grant, headers: Mapping[str, str], stall_s: float) -> Iterator[httpx.Response]:
    all_headers = {**grant.headers, **headers}
    timeout = httpx.Timeout(stall_s, connect=min(CONNECT_S, stall_s))
    with httpx.stream(
        "GET", grant.url or "", headers=all_headers, timeout=timeout, verify=certificates(), trust_env=False
    ) as response:
        if not response.is_success and response.status_code != REQUESTED_RANGE_NOT_SATISFIABLE:
            response.read()
            raise _download_error(grant, response)
        yield response


def _connection_error(what: str, grant: Grant, error: httpx.HTTPError) -> str:
    """An error text without the original message and cause: either may contain the URL, which is a permission."""
    return f"{what} of {grant.key}: {type(error).__name__}"


def _download_error(grant: Grant, response: httpx.Response) -> Exception:
    """`DamagedError` only if no later attempt can succeed.

    A sign-in page, a rate limit, or the page of a proxy in front of the server does not mean that.
    """
    status, reason, ours = response.status_code, resumable_upload.reason_of(response), is_ours(response)
    is_of_a_proxy = GRANT_HEADER in grant.headers and not ours
    if status not in _LOST or is_of_a_proxy or (status == 403 and reason in resumable_upload.SLOW_DOWN):
        words = detail_of(response) if ours else f"HTTP {status} {reason}".rstrip()
        return ServerAway(f"download of {grant.key}: {words}")
    return DamagedError(f"{grant.kind} {grant.key} cannot be read (HTTP {status})", grant.sha256 or "")
