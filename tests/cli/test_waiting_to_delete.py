"""`trainhop rm` on a job that has just ended, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pytest

from orchestrator.entrypoints.cli.client import Client
from orchestrator.entrypoints.cli.jobs import CLEANUP_S, delete_ended
from tests.helpers.page_server import PageServer, page_server
from tests.http.http_client import Machine
from trainhop.errors import Error
from trainhop.polling import Timing


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with page_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def client(server: PageServer) -> Iterator[Client]:
    connection = Client(server.url, server.api.admin_token)
    yield connection
    connection.close()


@dataclass
class Waits:
    """A clock that only moves by waiting. `after` is called with the number of each wait."""

    after: Callable[[int], object] = lambda _: None
    seconds: list[float] = field(default_factory=list[float])

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.after(len(self.seconds))

    @property
    def timing(self) -> Timing:
        return Timing(period_s=1.0, clock=lambda: sum(self.seconds), sleep=self.sleep)


def launched(server: PageServer) -> str:
    """The id of a job on a machine that has not started it yet."""
    job = server.api.admin.submit()["id"]
    Machine.launched(server.api, server.provider)
    return job


def cancelled(server: PageServer, client: Client) -> dict[str, Any]:
    """A job that has ended, with a machine that the server has not cleaned up."""
    return client.post(f"/jobs/{launched(server)}:cancel")


def test_rm_waits_until_the_last_machine_is_cleaned_up(server: PageServer, client: Client) -> None:
    """Guard: without the look at CONFLICT a job that was cancelled and removed in one line was refused."""
    job = cancelled(server, client)

    def clean_up(number: int) -> None:
        if number == 2:
            server.provider.end(server.provider.launched[-1].lease_id)
            server.reconcile()

    waits = Waits(after=clean_up)
    delete_ended(client, job, waits.timing)
    assert waits.seconds == [1.0, 1.0]
    with pytest.raises(Error) as gone:
        client.get(f"/jobs/{job['id']}")
    assert gone.value.status == HTTPStatus.NOT_FOUND


def test_rm_gives_up_on_a_machine_that_nobody_cleans_up(server: PageServer, client: Client) -> None:
    """Guard: without `until` it waited for ever."""
    waits = Waits()
    with pytest.raises(Error, match="still being cleaned up"):
        delete_ended(client, cancelled(server, client), waits.timing)
    assert CLEANUP_S <= sum(waits.seconds) <= CLEANUP_S + 1.0


def test_rm_does_not_wait_for_a_job_that_runs(server: PageServer, client: Client) -> None:
    """Guard: without the look at FINAL it waited two minutes for a job that nobody had cancelled."""
    job, waits = client.get(f"/jobs/{launched(server)}"), Waits()
    with pytest.raises(Error, match="Cancel it before you delete it"):
        delete_ended(client, job, waits.timing)
    assert waits.seconds == []
