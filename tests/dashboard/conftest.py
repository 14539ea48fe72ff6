"""A real browser before a real server; what a page may never do (foreign requests, console errors) fails every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from benchmarks.browser import MISSING, browser, program
from orchestrator.entrypoints.http.app import make_app
from tests.dashboard.receivers import Receiver, receiving
from tests.helpers.page_server import PageServer, page_server
from tests.helpers.requirements import skip_or_fail
from tests.http.conftest import api, api1, people  # noqa: F401  fixtures
from tests.http.http_client import Api


@pytest.fixture(scope="package")  # an idle browser needs a third of a processor
def chromium():
    """The distribution's Chromium; without it these tests are skipped, or fail where everything is required."""
    if program() is None:
        skip_or_fail(MISSING)
    with browser() as running:
        yield running


@pytest.fixture
def site(sqlite_app) -> Iterator[Api]:
    """A client without a token, as a browser is; redirects are looked at, not followed."""
    with TestClient(make_app(sqlite_app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield Api(app=sqlite_app, client=client)


@pytest.fixture
def show(tmp_path) -> Iterator[PageServer]:
    """A server in this process, with machines that tests drive by hand."""
    with page_server(tmp_path) as running:
        yield running


@pytest.fixture
def visit(chromium):
    """Opens a logged-in page: `visit(link, scheme="dark", width=360)`; at the end nothing foreign and no error was
    seen."""
    contexts = []
    foreign: list[str] = []
    complaints: list[str] = []

    def open_page(link: str, *, scheme: str = "light", width: int = 1280, tolerate: tuple[str, ...] = (), **more):
        host = "/".join(link.split("/")[:3])
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, **more)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith((host, "blob:")) else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on(
            "console",
            lambda m: (
                complaints.append(m.text)
                if m.type in ("error", "warning") and not any(t in m.text for t in tolerate)
                else None
            ),
        )
        page.goto(link)
        page.wait_for_url(f"{host}/")  # the page of the link goes on by itself
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == []
    assert complaints == []


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Where messages are sent to; it lies inside the server's own network."""
    with receiving() as found:
        yield found
