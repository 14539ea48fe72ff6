"""What a worker makes of the answers it gets from whatever listens at its server's address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from worker.agent.uplink import HttpUplink, Refused, ServerAway, Stale
from worker.shared.messages import GRANT_HEADER, Action, Directive, Finish, Grant, GrantKind, Phase, Report, Ticket

HTML = "<html><title>404 tunnel not found</title></html>"


@contextmanager
def answering(status: int, body: str) -> Iterator[HttpUplink]:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield HttpUplink(Ticket(lease="lease-1", token="t", budget_s=60, server_url=url))
        finally:
            server.shutdown()
            thread.join()


REPORT = Report(lease="lease-1", fence=1, seq=1, step=1, phase=Phase.TRAIN)
GO_ON = Directive(action=Action.CONTINUE)
FINISH = Finish(lease="lease-1", fence=1, seq=2, step=1)


@pytest.mark.parametrize(
    ("headers", "reached"),
    [({GRANT_HEADER: "g"}, "{here}/api/v1/blobs/jobs/j/1"), ({}, "https://lab.example/api/v1/blobs/jobs/j/1")],
)
def test_a_servers_own_files_have_the_address_at_which_it_is_reached(headers: dict[str, str], reached: str) -> None:
    """Another store's files keep theirs. Guard: without `_reached` a machine was sent to an address it cannot call."""
    url = "https://lab.example/api/v1/blobs/jobs/j/1"
    grant = Grant(key="jobs/j/1", kind=GrantKind.CHECKPOINT, url=url, headers=headers)
    with answering(200, json.dumps([grant.model_dump(mode="json")])) as uplink:
        (found,) = uplink.grants(1, GrantKind.CHECKPOINT, 1)
        assert found.url == reached.format(here=uplink._server_url)


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 409, 410, 422, 500])
@pytest.mark.parametrize("body", [HTML, "", "[]", '{"detail": "Not Found"}', '{"type": "about:blank"}'])
def test_a_stranger_at_the_servers_address_ends_nothing(status: int, body: str) -> None:
    """A proxy or a tunnel in front of a server that is away, or another program on its port.

    Guard: while any 404 or 401 counted, such an answer ended the session; while any 200 did, the last word was lost.
    """
    with answering(status, body) as uplink:
        with pytest.raises(ServerAway):
            uplink.report(REPORT)
        with pytest.raises(ServerAway):
            uplink.finish(FINISH)


@pytest.mark.parametrize(("status", "meaning"), [(409, Stale), (401, Stale), (422, Refused), (503, ServerAway)])
def test_the_servers_own_word_counts(status: int, meaning: type[Exception]) -> None:
    said = json.dumps({"type": "urn:trainhop:problem:any", "status": status, "detail": "fence 1 is stale"})
    with answering(status, said) as uplink, pytest.raises(meaning, match="fence 1 is stale"):
        uplink.report(REPORT)


def test_success_has_one_form() -> None:
    with answering(200, GO_ON.model_dump_json()) as uplink:
        assert uplink.report(REPORT) == GO_ON
        with pytest.raises(ServerAway, match="the answer is not from the server"):
            uplink.finish(FINISH)
    with answering(204, "") as uplink:
        uplink.finish(FINISH)
