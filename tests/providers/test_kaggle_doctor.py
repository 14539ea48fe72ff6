"""The check of a Kaggle account over an emulated Kaggle: what it finds where all is well, and each fault by its name."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.diagnosis_ports import CheckOrder, Examined, SupportsDiagnosis
from orchestrator.domain.diagnosis import judged
from orchestrator.ports import CredentialsRefused, ProviderUnavailable
from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.providers.kaggle.diagnosis import Limits
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.providers.play import OpenVault, kaggle_account
from worker.doctor import outcome

FAST = Limits(
    limit_s=6.0,
    answer_s=120.0,
    over_s=20.0,
    ready_s=5.0,
    listed_s=0.5,
    probe_s=100.0,
    hub_s=20.0,
    poll_s=0.05,
    stamp_every_s=0.1,
    flood_bytes=64 << 10,
)
ALICE = kaggle_account("alice")


@pytest.fixture
def make(tmp_path):
    """`make(environment, **emulator)`: an emulated Kaggle and a driver of it whose checks are quick."""
    built: list[KaggleEmulator] = []

    def build(environment: dict[str, str] | None = None, **more: Any) -> tuple[KaggleEmulator, KaggleProvider]:
        people = [Person(name="alice", token="KGAT_alice")]
        found = {"OMP_NUM_THREADS": "1"} | (environment or {})
        emulator = KaggleEmulator(tmp_path / "emulator", people, environment=found, **more)
        built.append(emulator)
        provider = KaggleProvider(OpenVault(), tmp_path / "kaggle", emulator.endpoint, fresh_s=0.0)
        provider.limits = FAST
        return emulator, provider

    yield build
    for emulator in built:
        emulator.close()


def checked(provider: KaggleProvider, *probes: str, **more: Any) -> dict[str, dict[str, Any]]:
    """The judged probes of a check by name; nothing of it is left at Kaggle afterwards."""
    order = CheckOrder(id="check-1", token="a-check-token", gpu=False, probes=frozenset(probes), **more)
    found = provider.diagnose(ALICE, order, lambda _: None)
    provider.clear_check(ALICE, order.id)
    return {probe["name"]: probe for probe in judged([o.as_dict() for o in found.outcomes])}


def test_what_is_known_from_outside(make) -> None:
    kaggle, provider = make()
    assert isinstance(provider, SupportsDiagnosis)
    found = checked(provider, outcome.TIME_LIMIT, outcome.CANCEL, outcome.LOG, outcome.INPUTS)
    print(found)
    asked = {name: p["status"] for name, p in found.items() if p["status"] != "not asked"}
    assert asked == dict.fromkeys((outcome.TIME_LIMIT, outcome.CANCEL, outcome.LOG, outcome.INPUTS), "ok"), found
    assert not kaggle.world.kernels
    assert not kaggle.world.datasets
