"""Reading and writing the one file that a grant allows: by path on the server's own computer, by URL elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from http.client import REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path

import httpx

from worker.agent.uplink import Refused, ServerAway, Stale
from worker.shared import resumable_upload
from worker.shared.messages import Grant
from worker.shared.ranged_download import fetch

TIMEOUT_S = 300.0
CONNECT_S = 30.0
STALL_S = 120.0
"""Without a byte, until a download is taken for cut off."""
CHUNK_BYTES = 1 << 20
_GONE = frozenset({401, 403, 404, 409, 410})
_LOST = _GONE - {401}
_TAKEN = 409
"""Of an upload: it arrived although nobody heard so, and now it is another file's turn."""


class DamagedError(Exception):
    """What was read is not what was promised; `sha256` is the promise."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class UnusableGrant(ServerAway):
    """This grant will never take the file: try another one."""


def probe(grant: Grant) -> bool:
    """Whether an upload through this grant can be expected to work from this machine."""
    return (
        resumable_upload.probe(grant.url or "") if grant.resumable else grant.path is not None or grant.url is not None
    )


def upload(grant: Grant, source: Path, patience: resumable_upload.Patience | None = None) -> None:
    """Bring a finished file to its place, whole or not at all; raises `OSError` or an `UplinkError`."""
    if grant.path is not None:
        _place(source, Path(grant.path))
    elif grant.resumable:
        _send(grant, source, patience)
    else:
        _put(grant, source)


def _send(grant: Grant, source: Path, patience: resumable_upload.Patience | None) -> None:
    """Through a resumable session; what it says of the finished file is compared with the file."""
    try:
        stored = resumable_upload.send(grant.url or "", source, patience=patience)
    except resumable_upload.SessionGone as error:
        raise UnusableGrant(f"upload of {grant.key}: {error}") from error
    except resumable_upload.SessionAway as error:
        raise ServerAway(f"upload of {grant.key}: {error}") from error
    size = source.stat().st_size
    if int(stored.get("fileSize", size)) != size:
        raise UnusableGrant(f"upload of {grant.key}: {stored['fileSize']} of {size} bytes arrived")
    if "sha256Checksum" in stored:
        with source.open("rb") as file:
            mine = hashlib.file_digest(file, "sha256").hexdigest()
        if stored["sha256Checksum"] != mine:
            raise UnusableGrant(f"upload of {grant.key}: other bytes arrived than were sent")


def _put(grant: Grant, source: Path) -> None:
    try:
        with source.open("rb") as file:
            answer = httpx.put(grant.url or "", content=file, headers=grant.headers, timeout=TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerAway(_unanswered("upload", grant, error)) from None
    if answer.status_code == _TAKEN:
        raise UnusableGrant(f"upload of {grant.key}: an earlier file lies there")
    if not answer.is_success:
        kind = Stale if answer.status_code in _GONE else Refused if answer.status_code < 500 else ServerAway
        raise kind(f"upload of {grant.key}: HTTP {answer.status_code} {answer.text[:200]}")


def _place(source: Path, target: Path) -> None:
    """Link on the same disk (nothing is copied), else copy aside, flush and rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(target)
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    aside.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def download(grant: Grant, target: Path, stall_s: float = STALL_S) -> Path:
    """The granted file on this machine, checked against its sha256; raises `DamagedError`, `OSError` or an `UplinkError`.

    It is given up for now, as a `ServerAway`, after `stall_s` seconds without a byte; the next call goes on from there.
    """
    found, in_parts = (Path(grant.path), False) if grant.path is not None else (target, _fetch(grant, target, stall_s))
    digest = hashlib.sha256()
    try:
        with found.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise DamagedError(f"{grant.kind} {grant.key} is not in the store any more", grant.sha256 or "") from error
    if grant.sha256 is not None and digest.hexdigest() != grant.sha256:
        if in_parts:
            raise ServerAway(f"download of {grant.key}: its parts do not fit together")
        raise DamagedError(
            f"{grant.kind} {grant.key} is damaged: sha256 {digest.hexdigest()[:12]}, expected {grant.sha256[:12]}",
            grant.sha256,
        )
    return found


def arrived(target: Path) -> int:
    """Bytes that have come of an unfinished download to `target`."""
    aside = _aside(target)
    return aside.stat().st_size if aside.is_file() else 0


def _aside(target: Path) -> Path:
    return target.with_name(f".incoming-{target.name}")


def _fetch(grant: Grant, target: Path, stall_s: float) -> bool:
    """Bring the file to `target`, going on where an earlier try was cut off; True if it came in parts."""
    aside = _aside(target)
    try:
        in_parts = fetch(lambda headers: _reading(grant, headers, stall_s), aside)
    except httpx.HTTPError as error:
        raise ServerAway(_unanswered("download", grant, error)) from None
    aside.replace(target)
    return in_parts


@contextlib.contextmanager
def _reading(grant: Grant, headers: Mapping[str, str], stall_s: float) -> Iterator[httpx.Response]:
    asked = {**grant.headers, **headers}
    timeout = httpx.Timeout(stall_s, connect=min(CONNECT_S, stall_s))
    with httpx.stream("GET", grant.url or "", headers=asked, timeout=timeout, trust_env=False) as answer:
        if not answer.is_success and answer.status_code != REQUESTED_RANGE_NOT_SATISFIABLE:
            answer.read()
            raise _not_given(grant, answer)
        yield answer


def _unanswered(what: str, grant: Grant, error: httpx.HTTPError) -> str:
    """Without the error's own text and cause: either may hold the address, which is a permission."""
    return f"{what} of {grant.key}: {type(error).__name__}"


def _not_given(grant: Grant, answer: httpx.Response) -> Exception:
    """Damage is only what no later try will give: a sign-in and a rate limit say nothing about the file."""
    status, reason = answer.status_code, resumable_upload.reason_of(answer)
    if status not in _LOST or (status == 403 and reason in resumable_upload.SLOW_DOWN):
        return ServerAway(f"download of {grant.key}: HTTP {status} {reason}".rstrip())
    return DamagedError(f"{grant.kind} {grant.key} cannot be read (HTTP {status})", grant.sha256 or "")
