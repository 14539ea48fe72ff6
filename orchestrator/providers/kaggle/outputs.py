"""Downloads a session's files from Kaggle. Skips files that do not belong to the session."""

from __future__ import annotations

import re
import time
from pathlib import Path

from orchestrator.ports.providers import SessionOutput
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.records import KernelNotes
from orchestrator.providers.kaggle.stream import pieces, stored
from orchestrator.providers.session_records import MAX_OUTBOX, left_messages

OUTBOX = "outbox.jsonl"
QUICK_SILENCE_S, QUICK_S = 1.5, 10.0
MAX_FILE = 20 << 30
"""Maximum bytes of one file: as many as Kaggle keeps of a session."""
_KEPT = re.compile(r"[a-z0-9_.-]+")


def gather(connection: Connection, owner: str, slug: str, notes: KernelNotes) -> bool:
    """Download the session's files and its log. False if something seems to be missing that may still appear.

    The kernel chooses the names of its files. Only plain names that belong to this lease are downloaded.
    """
    prefix, complete = notes.read().prefix, True
    try:
        files, log = connection.outputs(owner, slug)
    except KaggleError as refusal:
        if connection.absent(refusal, owner):
            return True
        raise
    for _ in notes.keep(stored([log])) if log else ():
        pass
    for name, url in files:
        if name != OUTBOX and _key(name, prefix) is None:
            continue
        # a file under a key never changes, but the outbox grows
        if name == OUTBOX or not (notes.files / name).is_file():
            notes.files.mkdir(mode=0o700, parents=True, exist_ok=True)
            complete &= _fetched(connection, url, notes.files / name, MAX_OUTBOX if name == OUTBOX else MAX_FILE)
    return complete and (notes.files / OUTBOX).is_file()


def _fetched(connection: Connection, url: str, target: Path, max_bytes: int) -> bool:
    """Download one file, at most `max_bytes` of it.

    An invalid URL does not affect the other files, and the next listing has a new URL.
    """
    try:
        connection.download(url, target, max_bytes)
    except KaggleError as refusal:
        if refusal.status == 404:
            return False
        raise
    return True


def kept(notes: KernelNotes) -> SessionOutput:
    """Messages, and the downloaded files by grant key."""
    prefix = notes.read().prefix
    found = sorted(notes.files.iterdir()) if notes.files.is_dir() else []
    files = {key: path for path in found if (key := _key(path.name, prefix)) is not None}
    return SessionOutput(messages=left_messages(notes.files / OUTBOX), files=files)


def _key(name: str, prefix: str) -> str | None:
    """The grant key of a stored file, if it belongs to this lease."""
    if not prefix or not _KEPT.fullmatch(name) or name.startswith("."):
        return None
    key = name.replace("__", "/")
    return key if key.startswith(prefix) and all(part.strip(".") for part in key.split("/")) else None


def save_log(connection: Connection, owner: str, slug: str, notes: KernelNotes) -> None:
    """Store the log as it is now. A live log is read until no more data arrives."""
    until = time.monotonic() + QUICK_S
    with connection.log(owner, slug, QUICK_SILENCE_S) as answer:
        for _ in notes.keep(pieces(answer)):
            if time.monotonic() > until:
                return
