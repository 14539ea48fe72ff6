"""An emulated Kaggle with two people, and drivers that speak to it through the real client library."""

from __future__ import annotations

import pytest

from orchestrator.providers.kaggle import KaggleProvider, kernel
from orchestrator.testing import FakeClock
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.providers.kernels import OpenVault, light_worker


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
    return KaggleProvider(OpenVault(), tmp_path / "kaggle", kaggle.endpoint, fresh_s=0.0, now=clock.now)


@pytest.fixture
def works(monkeypatch):
    """`works(code)`: the kernels carry a worker of a few lines instead of the real one."""

    def carry(code):
        monkeypatch.setattr(kernel, "worker_zip", lambda: light_worker(code))

    return carry
