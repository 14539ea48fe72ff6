"""A world on each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.database.unit_of_work import make_engine
from tests.helpers.world import World


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    engine = make_engine(database_url)
    yield World(engine, tmp_path)
    engine.dispose()
