"""An emulated Drive and stores on it that lose no time between attempts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from orchestrator.adapters.stores.google_drive.client import DriveClient, Retries
from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.adapters.stores.google_drive.store import DriveStore
from orchestrator.testing.environments import MemoryIds, store_env
from tests.emulators.drive import Drive
from worker.shared.resumable_upload import Patience

AT_ONCE = Retries(attempts=20, first_s=0.0, longest_s=0.0, jitter_s=0.0)


@pytest.fixture
def troubles() -> list[str]:
    """What the store has said a person must put right."""
    return []


@pytest.fixture
def make_store(drive: Drive, troubles: list[str]) -> Iterator[Callable[..., DriveStore]]:
    made: list[DriveStore] = []

    def make(title: str = "Trainhop 1", ids: MemoryIds | None = None, retries: Retries = AT_ONCE) -> DriveStore:
        login = read_login(json.dumps(drive.authorized_user()), drive.url)
        client = DriveClient(login, drive.url, on_trouble=troubles.append, retries=retries)
        env = store_env(ids=MemoryIds() if ids is None else ids, config={"folder": title})
        patience = Patience(attempts=30, sleep=lambda _: None)
        made.append(DriveStore(env, client=client, patience=patience))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., DriveStore]) -> DriveStore:
    return make_store()
