"""Sends files to a machine that cannot download them, as private datasets of the same account.

Training data and a gated model's small files have one dataset per file for all jobs and sessions. The checkpoint that a
session resumes from, or the adapter that it exports, has its own dataset, which is deleted with the session.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.ports.providers import LaunchRequest, ProviderUnavailable
from orchestrator.ports.stores import StoreError
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.kernel import file_name
from orchestrator.providers.kaggle.records import AccountNotes
from worker.shared.messages import Grant, GrantKind

MAX_PAUSE_S = 5.0
MAX_SPOILED = 1_000
"""Maximum number of datasets for which another name is remembered."""
SENT_FOR_S = 3600.0
"""How long an upload is not repeated, even if Kaggle refuses to create a dataset from it."""
_FIXED = ("trainhop-data-", "trainhop-model-")
_TAKEN = re.compile(r"\balready (in use|exists|taken)\b", re.IGNORECASE)
_TOKEN = re.compile(r"\b(blob|token)s?\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits. `ready_within_s` is the maximum wait for a dataset.

    `sleep` is called to wait, also between attempts of an upload.
    """

    ready_within_s: float = 900.0
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The state of staging. `folder` has the files to send, `notes` the completed uploads.

    `now` is in epoch seconds.
    """

    connection: Connection
    owner: str
    folder: Path
    notes: AccountNotes
    now: float
    patience: Patience

    def sent(self, grant: Grant) -> str:
        """The token of an uploaded file without a dataset. Empty if there is none."""
        at, token = self.notes.read().uploads.get(_label(grant), (0.0, ""))
        return token if 0 <= self.now - at < SENT_FOR_S else ""

    def note_sent(self, grant: Grant, token: str) -> None:
        """Store a file's token, or remove it if the token is empty. Expired tokens are removed too."""
        kept = self.notes.read().uploads.items()
        fresh = {k: v for k, v in kept if 0 <= self.now - v[0] < SENT_FOR_S and k != _label(grant)}
        self.notes.write(uploads=fresh | ({_label(grant): (self.now, token)} if token and grant.sha256 else {}))

    def name(self, slug: str) -> str:
        """The name in use for a dataset: `slug`, or another one if that went bad."""
        number = self.notes.read().spoiled.get(slug, 0)
        return f"{slug}-{number + 1}" if number else slug

    def spoil(self, slug: str) -> None:
        """Use another name for this dataset from now on. Kaggle does not make the object of the old one usable.

        The checkpoint of a session has a name of its own anyway.
        """
        if not slug.startswith(_FIXED):
            return
        spoiled = self.notes.read().spoiled
        newest = list(spoiled.items())[-MAX_SPOILED:]
        self.notes.write(spoiled=dict(newest) | {slug: spoiled.get(slug, 0) + 1})


def _label(grant: Grant) -> str:
    return f"{grant.sha256} {file_name(grant.key)}"


def stage(desk: Desk, request: LaunchRequest, *, checkpoint: str) -> tuple[str, ...]:
    """Provide every input as a dataset and return the `owner/slug` of each. Existing datasets are not sent again.

    `checkpoint` is the slug for the checkpoint that the session resumes from, or for its adapter. Raises
    `ProviderUnavailable` if a dataset is not ready in time. A later attempt finds it.
    """
    if request.assignment is None:
        return ()
    resume = request.assignment.resume
    grants = {grant.key: grant for grant in request.assignment.reads}
    slugs: list[str] = []
    for key, read in request.inputs.items():
        grant = grants[key]
        is_own = grant.kind is GrantKind.ADAPTER or (resume is not None and key == resume.key)
        slug = checkpoint if is_own else _slug(grant)
        _bring(desk, slug, grant, read)
        slugs.append(slug)
    for slug in slugs:
        _await_ready(desk, slug)
    return tuple(f"{desk.owner}/{desk.name(slug)}" for slug in slugs)


def _slug(grant: Grant) -> str:
    """The dataset's slug for a file. A model's files are found by name, and two of them may have the same bytes."""
    if grant.kind is GrantKind.MODEL:
        return f"trainhop-model-{hashlib.sha256(f'{grant.key} {grant.sha256}'.encode()).hexdigest()[:24]}"
    return f"trainhop-data-{(grant.sha256 or '')[:24]}"


def _bring(desk: Desk, slug: str, grant: Grant, read: Callable[[], Iterator[bytes]]) -> None:
    connection, owner, name = desk.connection, desk.owner, desk.name(slug)
    state = connection.dataset_state(owner, name)
    if state == "FAILED":
        _make_anew(desk, slug)
        name = desk.name(slug)
    elif state not in (None, "DELETED"):
        return
    known = desk.sent(grant)
    token = known or _send(desk, grant, read)
    try:
        connection.create_dataset(owner, name, token)
    except KaggleError as refusal:
        # A new token cannot be one that Kaggle has forgotten, whatever words its refusal has.
        if known and _TOKEN.search(refusal.words):
            desk.note_sent(grant, "")
        # a dataset exists if another launch was faster, or if our own first attempt succeeded
        if connection.dataset_state(owner, name) in (None, "DELETED"):
            if _TAKEN.search(refusal.words):
                desk.spoil(slug)
            raise refusal from None
    else:
        desk.note_sent(grant, "")


def _make_anew(desk: Desk, slug: str) -> None:
    """Delete a dataset that went bad, and use another name if that is refused. A deleted name may stay taken."""
    try:
        desk.connection.delete_dataset(desk.owner, desk.name(slug))
    except ProviderUnavailable:
        desk.spoil(slug)


def _send(desk: Desk, grant: Grant, read: Callable[[], Iterator[bytes]]) -> str:
    desk.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="upload-", dir=desk.folder) as aside:
        source = Path(aside) / file_name(grant.key)
        _copy(grant, read, source)
        token = desk.connection.upload(source, source.name, sleep=desk.patience.sleep)
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
        raise ProviderUnavailable(f"{grant.key} cannot be read for Kaggle: {error}") from error
    if grant.sha256 is not None and digest.hexdigest() != grant.sha256:
        raise ProviderUnavailable(f"{grant.key} is damaged in the store (sha256 {digest.hexdigest()[:12]})")


def _await_ready(desk: Desk, slug: str) -> None:
    until, pause, name = time.monotonic() + desk.patience.ready_within_s, 0.1, desk.name(slug)
    state, asked_s = _progress(desk.connection, desk.owner, name)
    while state != "READY":
        if state in (None, "FAILED", "DELETED"):
            raise ProviderUnavailable(f"Kaggle could not process {name} ({state or 'gone'}), sending it again")
        if time.monotonic() + asked_s > until:
            _note_late(desk, slug)
            raise ProviderUnavailable(
                f"Kaggle is still processing {name} after {desk.patience.ready_within_s / 60:.0f} minutes"
            )
        desk.patience.sleep(max(pause, asked_s))
        pause = min(MAX_PAUSE_S, 1.6 * pause)
        state, asked_s = _progress(desk.connection, desk.owner, name)


def _note_late(desk: Desk, slug: str) -> None:
    """After the second time in a row, the next launch sends the file again under another name."""
    late = desk.notes.read().late
    if slug not in late:
        desk.notes.write(late=[*late[-MAX_SPOILED:], slug])
        return
    desk.notes.write(late=[other for other in late if other != slug])
    with contextlib.suppress(ProviderUnavailable):
        desk.connection.delete_dataset(desk.owner, desk.name(slug))
    desk.spoil(slug)


def _progress(connection: Connection, owner: str, slug: str) -> tuple[str | None, float]:
    """A dataset's state, and a pause in seconds that Kaggle asks for.

    Giving up during a pause would waste the upload.
    """
    try:
        return connection.dataset_state(owner, slug), 0.0
    except KaggleError as refusal:
        if refusal.status != 429:
            raise
        return "not told", refusal.retry_after or MAX_PAUSE_S
