"""What strangers can hold, write and claim: connections, readiness, addresses and origins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.types import Message

from orchestrator.entrypoints.api.csv_cells import text_cell
from orchestrator.entrypoints.http.health import Readiness
from orchestrator.entrypoints.http.patience import protocol, punctual
from orchestrator.testing import FakeClock
from tests.helpers import async_story
from tests.http.http_client import Api, Machine, People


class Ready(uvicorn.Server):
    """Says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_ready = threading.Event()

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        self.is_ready.set()


async def hello(scope: object, receive: object, send: object) -> None:
    """Reads the body in time and says so."""
    body = punctual(receive, piece_s=0.3)  # type: ignore[arg-type]
    status = 200
    try:
        while (await body()).get("more_body"):
            pass
    except HTTPException as error:
        status = error.status_code
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]


@pytest.fixture
def port() -> Iterator[int]:
    config = uvicorn.Config(
        hello, port=0, http=protocol(0.3), timeout_keep_alive=1, log_level="critical", lifespan="off"
    )
    server = Ready(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.is_ready.wait(20)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b"408"),
        (b"GET / HT", b"408"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"408"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234", b"408"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHos", b"200 OK"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab", b"200 OK"),
    ],
)
def test_a_request_that_is_half_sent_holds_no_connection(port: int, sent: bytes, answer: bytes) -> None:
    """Guard: without the timers of `protocol` and `punctual` the server waits for ever, and so does this test."""

    async def half() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(20):
            said = await reader.read()
        writer.close()
        return said

    assert answer in async_story.run(half()).splitlines()[0]


def test_a_body_that_drips_is_refused() -> None:
    """Each piece is in time. Guard: without `body_s` it lasts as long as its sender wants."""

    async def drip() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"", "more_body": True}  # full ones may be fast enough

    async def take() -> None:
        body = punctual(drip, piece_s=5.0, body_s=0.05)
        while True:
            await body()

    with pytest.raises(HTTPException, match="did not arrive in time"):
        async_story.run(take())


def test_strangers_who_ask_for_readiness_write_little() -> None:
    """Guard: without the time each of them wrote to the database and the store."""
    clock, written = FakeClock(), []
    readiness = Readiness(lambda: written.append(1), fresh_s=2.0, clock=clock.now)
    for _ in range(100):
        readiness.check()
    assert len(written) == 1
    clock.tick(2.0)
    readiness.check()
    assert len(written) == 2


def test_a_failure_of_the_probe_is_not_remembered() -> None:
    def fail() -> None:
        tried.append(1)
        raise OSError

    tried: list[int] = []
    readiness = Readiness(fail)
    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011  any
            readiness.check()
    assert len(tried) == 3


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://testserver", 200), ("https://testserver", 403), ("http://testserver:81", 403), ("null", 403)],
)
def test_an_origin_is_compared_with_its_scheme(api1: Api, people: People, origin: str, status: int) -> None:
    """Guard: with hosts alone compared, the page of another server on the same host was ours."""
    host = str(api1.client.base_url.host)
    answer = people.ann.call("GET", "/jobs", headers={"Origin": origin.replace("testserver", host)})
    assert answer.status_code == status


def test_a_grant_to_read_ends_with_its_lease(api1: Api, people: People, provider) -> None:  # type: ignore[no-untyped-def]
    """Guards: without `require_live` it is valid for ever; without the lease in the signature another one serves."""
    people.ann.submit()
    machine = Machine.launched(api1, provider)
    grant = machine.start().json()["datasets"][0]
    path = "/api/v1" + grant["url"].partition("/api/v1")[2]

    def read(given: str) -> int:
        return api1.client.get(path, headers={"X-Grant": given}).status_code

    good = grant["headers"]["X-Grant"]
    lease, _, signature = good.rpartition(".")
    assert (read(good), lease) == (200, machine.lease)
    assert {read(bad) for bad in ("", signature, f"lease-x.{signature}", f"{lease}.{'0' * 64}", f".{signature}")} == {
        403
    }
    plain = api1.app.store.signature("get", grant["key"])
    assert read(plain) == 409, "made by an earlier version, of which no session runs"
    machine.say("release", machine.said("release", step=0, reason="deadline"))
    assert read(good) == 409


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1"])
def test_a_machines_word_is_no_formula(name: str) -> None:
    """Guard: without the quote a spreadsheet runs it."""
    assert text_cell(name) == f"'{name}"
    assert text_cell("loss") == "loss"
