"""Clients that leave in the middle, and a server that stops while pages are open."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from starlette.testclient import TestClient
from structlog.testing import capture_logs

from orchestrator.entrypoints.dashboard.live import Hub
from orchestrator.entrypoints.http.app import make_app
from orchestrator.entrypoints.http.event_stream import EventNotifier, stream
from orchestrator.services.rounds import Rounds
from tests.helpers import async_story

PATIENCE_S = 10.0


def test_a_server_that_has_ended_leaves_memory(make_server, tmp_path):
    """Guard: with the document as a route of FastAPI, which keeps its functions for good, the server stayed with all
    its open files."""
    made = make_app(make_server(f"sqlite:///{tmp_path / 'trainhop.db'}"))
    with TestClient(made, base_url="http://127.0.0.1") as client:
        assert client.get("/openapi.json").status_code == 200
    remembered = weakref.ref(made)
    del made, client
    # What a finalizer has touched is freed by the collection after the one that ran it.
    for _ in range(2):
        gc.collect()
    assert remembered() is None


def test_a_client_that_leaves_while_it_sends_is_no_error(api1, people):
    """Guard: without a handler for `ClientDisconnect` it was logged as an unexpected error, with its traceback."""
    pieces = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    token = people.ann.token
    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {token}".encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/v1/datasets",
        "raw_path": b"/api/v1/datasets",
        "query_string": b"name=rows.jsonl",
        "headers": [*headers, (b"content-type", b"application/octet-stream")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "root_path": "",
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return next(pieces)

    async def send(message: Any) -> None:
        sent.append(message)

    with capture_logs() as logs:
        async_story.run(api1.client.app(scope, receive, send))
    assert not [entry for entry in logs if entry["event"] == "unexpected error"]
    assert sent[0]["status"] == 400


def test_a_server_that_stops_ends_its_event_streams():
    """Guard: without `close`, each open stream was cancelled after five seconds, with a traceback in the log."""

    async def story() -> list[Any]:
        notifier = EventNotifier(lambda: 0)
        open_stream = asyncio.create_task(_all(stream(notifier, lambda _: [], 0)))
        await asyncio.sleep(0)
        notifier.close()
        return await asyncio.wait_for(open_stream, PATIENCE_S)

    assert async_story.run(story()) == []


def test_a_server_that_stops_ends_the_streams_of_pages(api1):
    """Guard: the same, for a job's page."""

    async def story() -> list[Any]:
        hub = Hub(api1.client.app.state.server)
        open_stream = asyncio.create_task(_all(hub.follow("job-1", (0, 0), is_own=True)))
        await asyncio.sleep(0)
        hub.close()
        return await asyncio.wait_for(open_stream, PATIENCE_S)

    async_story.run(story())


def test_a_page_goes_on_after_any_error_of_its_queries(api1):
    """Guard: while only errors of the database were caught, another one ended the loop for all open pages."""

    class Failing:
        asked = 0

        def pulses(self, jobs: list[str]) -> dict[str, Any]:
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("can't start new thread")
            return dict.fromkeys(jobs)

    class Fake:
        def __init__(self) -> None:
            real = api1.client.app.state.server
            self.app, self.ctx, self.queries, self.dashboard_queries = real.app, real.ctx, real.queries, Failing()

    async def story() -> list[Any]:
        return await asyncio.wait_for(_all(Hub(Fake()).follow("job-1", (0, 0), is_own=True)), PATIENCE_S)  # pyright: ignore[reportArgumentType]

    assert [event.event for event in async_story.run(story())] == ["gone"]


def test_the_server_is_ready_while_its_loops_go_on(api1):
    """Guard: without the look at `late`, a server whose loops were all dead answered 200."""
    now = [0.0]
    api1.app.rounds = Rounds(lambda: now[0])
    api1.app.rounds.expect("reconcile", 130.0)
    assert api1.client.get("/readyz").text == "ready\n"
    now[0] = 131.0
    late = api1.client.get("/readyz")
    assert (late.status_code, "reconcile (131 s ago)" in late.json()["detail"]) == (503, True)
    api1.app.rounds.ended("reconcile")
    assert api1.client.get("/readyz").status_code == 200


async def _all(events: Any) -> list[Any]:
    return [event async for event in events]
