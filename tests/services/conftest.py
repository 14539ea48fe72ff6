"""A world over the database that a test is run on, and a judge model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.adapters.database.unit_of_work import make_engine
from tests.emulators.judge import JudgeEmulator
from tests.helpers.world import World


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> World:
    return World(engine, tmp_path)


@pytest.fixture
def world1(sqlite_template: Path, tmp_path: Path) -> Iterator[World]:
    """A world on SQLite alone, for tests in which the database plays no part."""
    shutil.copyfile(sqlite_template, tmp_path / "trainhop.db")
    engine = make_engine(f"sqlite:///{tmp_path / 'trainhop.db'}")
    yield World(engine, tmp_path)
    engine.dispose()


@pytest.fixture
def judge() -> Iterator[JudgeEmulator]:
    """An emulated judge model."""
    with JudgeEmulator() as running:
        yield running
