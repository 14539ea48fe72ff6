"""A client over the real application, people with tokens, and a machine that a test drives by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from starlette.testclient import TestClient

from orchestrator.entrypoints.http.app import make_app
from tests.helpers.loop_watch import LoopWatch
from tests.http.http_client import Api, Machine, People

# As the server's own log: without it a traceback is drawn with the values of all variables, which takes seconds.
structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


def _api(app) -> Iterator[Api]:
    watch = LoopWatch()
    loop = {"loop_factory": watch.new_loop}
    made = make_app(app)
    with TestClient(made, base_url="http://127.0.0.1", raise_server_exceptions=False, backend_options=loop) as client:
        yield Api(app=app, client=client)
    watch.check()


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


@pytest.fixture
def machine(api1, people, provider) -> Machine:
    """A machine that has started ann's job."""
    people.ann.submit()
    machine = Machine.launched(api1, provider)
    machine.start()
    return machine
