"""What a session left at Kaggle, brought into its folder here and told apart from what is not ours."""

from __future__ import annotations

import re
import time
from pathlib import Path

from orchestrator.ports.providers import Leftovers
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.records import Notes
from orchestrator.providers.kaggle.stream import pieces, stored

OUTBOX = "outbox.jsonl"
QUICK_SILENCE_S, QUICK_S = 1.5, 10.0
_KEPT = re.compile(r"[a-z0-9_.-]+")


def gather(connection: Connection, owner: str, slug: str, notes: Notes) -> bool:
    """Fetch what the session kept for us, and its log; False if something seems to be missing that may yet come.

    Names are Kaggle's word and the kernel's choice: only plain ones are fetched, and only those that belong to this lease.
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
        if name == OUTBOX or not (notes.files / name).is_file():  # a file under a key never changes, the outbox grows
            notes.files.mkdir(mode=0o700, parents=True, exist_ok=True)
            complete &= _fetched(connection, url, notes.files / name)
    return complete and (notes.files / OUTBOX).is_file()


def _fetched(connection: Connection, url: str, target: Path) -> bool:
    """An address that leads nowhere says nothing of the other files, and the next listing has another one."""
    try:
        connection.download(url, target)
    except KaggleError as refusal:
        if refusal.status == 404:
            return False
        raise
    return True


def kept(notes: Notes) -> Leftovers:
    """Messages and files by grant key, as far as they were fetched."""
    outbox, prefix = notes.files / OUTBOX, notes.read().prefix
    messages = tuple(outbox.read_text(errors="replace").splitlines()) if outbox.is_file() else ()
    found = sorted(notes.files.iterdir()) if notes.files.is_dir() else []
    files = {key: path for path in found if (key := _key(path.name, prefix)) is not None}
    return Leftovers(messages=messages, files=files)


def _key(name: str, prefix: str) -> str | None:
    """The grant key that a kept file's name stands for, if it is one of this lease's."""
    if not prefix or not _KEPT.fullmatch(name) or name.startswith("."):
        return None
    key = name.replace("__", "/")
    return key if key.startswith(prefix) and all(part.strip(".") for part in key.split("/")) else None


def save_log(connection: Connection, owner: str, slug: str, notes: Notes) -> None:
    """Keep the log as far as it is written now; a live one is read until it falls silent."""
    until = time.monotonic() + QUICK_S
    with connection.log(owner, slug, QUICK_SILENCE_S) as answer:
        for _ in notes.keep(pieces(answer)):
            if time.monotonic() > until:
                return
