"""An empty database in milliseconds, as often as Hypothesis asks: a migrated one is copied, not migrated again."""

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.adapters.database.unit_of_work import make_engine
from tests.helpers.postgres import Cluster


@pytest.fixture
def database_kind() -> str:
    """Overridden where a test runs on both."""
    return "sqlite"


@pytest.fixture
def make_database(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Each call closes the database made before it."""
    numbers = count()
    open_now: list[tuple[Engine, str]] = []

    def close() -> None:
        while open_now:
            engine, url = open_now.pop()
            engine.dispose()
            if database_kind == "postgres":
                request.getfixturevalue("postgres_cluster").take_back(url)

    def make() -> Engine:
        close()
        if database_kind == "postgres":
            cluster: Cluster = request.getfixturevalue("postgres_cluster")
            url = cluster.lend()
        else:
            path = tmp_path / f"{next(numbers)}.db"
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            url = f"sqlite:///{path}"
        open_now.append((make_engine(url), url))
        return open_now[-1][0]

    yield make
    close()
