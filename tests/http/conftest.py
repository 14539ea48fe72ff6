"""A client over the real application, people with tokens, and a machine that can be played by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from orchestrator.entrypoints.http.app import make_app
from tests.http.http_client import Api, People


def _api(app) -> Iterator[Api]:
    with TestClient(make_app(app), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield Api(app=app, client=client)


@pytest.fixture
def api(app) -> Iterator[Api]:
    """The application on both databases."""
    yield from _api(app)


@pytest.fixture
def api1(sqlite_app) -> Iterator[Api]:
    """The application on SQLite alone, where the database plays no part."""
    yield from _api(sqlite_app)


@pytest.fixture
def people(request) -> People:
    """An admin and two members, on whichever application the test uses."""
    name = "api" if "api" in request.fixturenames else "api1"
    return People.of(request.getfixturevalue(name))
