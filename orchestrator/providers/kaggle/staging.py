"""Bringing files to a machine that cannot fetch them: private datasets of the same account.

Training data and a gated model's small files keep one dataset per file, whatever the job or the session; a checkpoint to go on from gets one for its session
and is deleted with it.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.ports.providers import LaunchRequest, ProviderUnavailable, StoreError
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.kernel import file_name
from orchestrator.providers.kaggle.records import AccountNotes
from worker.shared.messages import Grant, GrantKind

READY_WITHIN_S = 900.0
MAX_PAUSE_S = 5.0
SENT_FOR_S = 3600.0
"""For so long what was sent is not sent again, though Kaggle refuses to make a dataset of it."""
_TOKEN = re.compile(r"\b(blob|token)s?\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """From where files are sent: `folder` takes them on their way, `notes` what was sent, at `now` (epoch seconds)."""

    connection: Connection
    owner: str
    folder: Path
    notes: AccountNotes
    now: float

    def sent(self, grant: Grant) -> str:
        """The token of a file that Kaggle has and has made no dataset of, or nothing."""
        at, token = self.notes.read().uploads.get(_label(grant), (0.0, ""))
        return token if 0 <= self.now - at < SENT_FOR_S else ""

    def note_sent(self, grant: Grant, token: str) -> None:
        """Keep a file's token; without one it is forgotten, and what is too old for use as well."""
        kept = self.notes.read().uploads.items()
        fresh = {k: v for k, v in kept if 0 <= self.now - v[0] < SENT_FOR_S and k != _label(grant)}
        self.notes.write(uploads=fresh | ({_label(grant): (self.now, token)} if token and grant.sha256 else {}))


def _label(grant: Grant) -> str:
    return f"{grant.sha256} {file_name(grant.key)}"


def stage(desk: Desk, request: LaunchRequest, *, checkpoint: str) -> tuple[str, ...]:
    """Have every input lie ready as `owner/slug`; what is there already is not sent again.

    `checkpoint` is the slug for the file that the session goes on from. Raises `ProviderUnavailable` if a dataset is not ready
    in time: a later try finds it.
    """
    if request.assignment is None:
        return ()
    resume = request.assignment.resume
    model = request.assignment.model
    grants = {g.key: g for g in (*request.assignment.datasets, *model, *([resume] if resume else []))}
    slugs: list[str] = []
    for key, read in request.inputs.items():
        grant = grants[key]
        slug = checkpoint if resume is not None and key == resume.key else _slug(grant)
        _bring(desk, slug, grant, read)
        slugs.append(slug)
    for slug in slugs:
        _await_ready(desk.connection, desk.owner, slug)
    return tuple(f"{desk.owner}/{slug}" for slug in slugs)


def _slug(grant: Grant) -> str:
    """One dataset for each file; those of a model are found by their names, and two of them may hold the same bytes."""
    if grant.kind is GrantKind.MODEL:
        return f"trainhop-model-{hashlib.sha256(f'{grant.key} {grant.sha256}'.encode()).hexdigest()[:24]}"
    return f"trainhop-data-{(grant.sha256 or '')[:24]}"


def _bring(desk: Desk, slug: str, grant: Grant, read: Callable[[], Iterator[bytes]]) -> None:
    connection, owner = desk.connection, desk.owner
    state = connection.dataset_state(owner, slug)
    if state == "FAILED":
        connection.delete_dataset(owner, slug)
    elif state not in (None, "DELETED"):
        return
    token = desk.sent(grant) or _send(desk, grant, read)
    try:
        connection.create_dataset(owner, slug, token)
    except KaggleError as refusal:
        if _TOKEN.search(refusal.words):
            desk.note_sent(grant, "")
        if (
            connection.dataset_state(owner, slug) is None
        ):  # else another launch was faster, or our own first try went through
            raise refusal from None
    else:
        desk.note_sent(grant, "")


def _send(desk: Desk, grant: Grant, read: Callable[[], Iterator[bytes]]) -> str:
    desk.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="upload-", dir=desk.folder) as aside:
        source = Path(aside) / file_name(grant.key)
        _copy(grant, read, source)
        token = desk.connection.upload(source, source.name)
    desk.note_sent(grant, token)
    return token


def _copy(grant: Grant, read: Callable[[], Iterator[bytes]], target: Path) -> None:
    digest = hashlib.sha256()
    try:
        with target.open("wb") as file:
            for chunk in read():
                digest.update(chunk)
                file.write(chunk)
    except StoreError as error:
        raise ProviderUnavailable(f"{grant.key} cannot be read to bring it to Kaggle: {error}") from error
    if grant.sha256 is not None and digest.hexdigest() != grant.sha256:
        raise ProviderUnavailable(f"{grant.key} came out of the store damaged (sha256 {digest.hexdigest()[:12]})")


def _await_ready(connection: Connection, owner: str, slug: str) -> None:
    until, pause = time.monotonic() + READY_WITHIN_S, 0.1
    state, asked_s = _progress(connection, owner, slug)
    while state != "READY":
        if state in (None, "FAILED", "DELETED"):
            raise ProviderUnavailable(f"Kaggle could not take in {slug} ({state or 'gone'}); it is sent again")
        if time.monotonic() + asked_s > until:
            raise ProviderUnavailable(f"Kaggle still processes {slug} after {READY_WITHIN_S / 60:.0f} minutes")
        time.sleep(max(pause, asked_s))
        pause = min(MAX_PAUSE_S, 1.6 * pause)
        state, asked_s = _progress(connection, owner, slug)


def _progress(connection: Connection, owner: str, slug: str) -> tuple[str | None, float]:
    """A dataset's state, and a pause in seconds that Kaggle asks for: to give up then would throw away what was sent."""
    try:
        return connection.dataset_state(owner, slug), 0.0
    except KaggleError as refusal:
        if refusal.status != 429:
            raise
        return "not told", refusal.retry_after or MAX_PAUSE_S
