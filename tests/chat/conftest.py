"""A tiny model with an adapter that changes its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.emulators.chat import ChatEmulator


@dataclass(frozen=True)
class Pairing:
    """A base model and an adapter for it, which names it."""

    base: Path
    adapter: Path


@pytest.fixture(scope="session")
def pairing(tmp_path_factory) -> Pairing:
    from benchmarks.export.models import make_adapter, make_model

    folder = tmp_path_factory.mktemp("chat")
    base = make_model(folder / "base", "llama")
    return Pairing(base, make_adapter(folder / "adapter", base, std=0.3))


@pytest.fixture
def endpoint() -> Iterator[ChatEmulator]:
    with ChatEmulator() as found:
        yield found
