"""An emulated Kaggle with two people, and drivers that speak to it through the real client library."""

from __future__ import annotations

import pytest

from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.testing import FakeClock
from orchestrator.testing.environments import driver_env
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.providers.kernels import with_changes, with_worker


@pytest.fixture
def kaggle(tmp_path):
    people = [Person(name="alice", token="KGAT_alice"), Person(name="bob", token="KGAT_bob", key="bobs-old-key")]
    with KaggleEmulator(tmp_path / "emulator", people) as emulator:
        yield emulator


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def provider(kaggle, tmp_path, clock):
    return KaggleProvider(driver_env(tmp_path / "kaggle", endpoint=kaggle.endpoint, clock=clock), fresh_s=0.0)


@pytest.fixture
def works(kaggle):
    """`works(code, **changes)`: kernels run a worker of a few lines, with changes to what their scripts carry."""

    def carry(code, **changes):
        kaggle.sessions.edit = lambda source: with_changes(with_worker(source, code), **changes)

    return carry
