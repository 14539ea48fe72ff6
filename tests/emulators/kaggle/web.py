"""HTTP around the services: who calls, which method, faults by rule, uploads, signed files, the log stream."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.emulators.kaggle.datasets import Datasets
from tests.emulators.kaggle.faults import Rule, Rules
from tests.emulators.kaggle.kernels import Kernels, log_stream
from tests.emulators.kaggle.state import Person, RefusedError, World

REMOTE_CALL = re.compile(r"^(?:/api)?/v1/([a-z]+)\.(\w+)/(\w+)$")
LOG_STREAM = re.compile(r"^(?:/api)?/v1/kernels/logs/stream/([^/]+)/([^/]+)$")
CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request that was made: by whom (None: nobody known), and with which JSON."""

    request: str
    account: str | None
    said: dict[str, Any]


class Desk:
    """What the handler of a request needs."""

    def __init__(self, world: World, kernels: Kernels, datasets: Datasets, rules: Rules) -> None:
        self.world, self.rules = world, rules
        self.seen: list[Seen] = []
        self.services: dict[str, object] = {
            "KernelsApiService": kernels,
            "DatasetApiService": datasets,
            "BlobApiService": datasets,
        }

    def who(self, authorization: str) -> Person | None:
        """The account behind an Authorization header."""
        kind, _, rest = authorization.partition(" ")
        for person in self.world.people.values():
            basic = base64.b64encode(f"{person.name}:{person.key}".encode()).decode()
            if not person.revoked and rest and (kind, rest) in (("Bearer", person.token), ("Basic", basic)):
                return person
        return None

    def introspect(self, said: dict[str, Any]) -> dict[str, Any]:
        """Whose token it is; inactive for one that is not known."""
        token = said.get("token")
        found = next((p for p in self.world.people.values() if token and p.token == token and not p.revoked), None)
        return {"active": True, "username": found.name, "scope": "resources.admin:*"} if found else {"active": False}


class Server(ThreadingHTTPServer):
    """Listens on loopback only."""

    daemon_threads = True

    def __init__(self, port: int, desk: Desk) -> None:
        self.desk = desk
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def endpoint(self) -> str:
        """Where clients are pointed to."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server's."""


class CutError(ConnectionError):
    """A rule says that the connection breaks here."""


class Handler(BaseHTTPRequestHandler):
    """One request at a time on one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        self._serve(self._remote_call)

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_PUT(self) -> None:
        self._serve(self._put)

    # --- one request ---

    def _serve(self, work: Callable[[str, Person | None, Rule | None], None]) -> None:
        desk = self.server.desk
        path = urlsplit(self.path).path
        person = desk.who(self.headers.get("Authorization", ""))
        rule = desk.rules.strike(f"{self.command} {path}", person.name if person else None)
        try:
            if rule is not None and rule.hold is not None:
                rule.hold.wait()
            if rule is not None and not rule.done and (rule.cut or rule.status is not None):
                self._body()
                self._misbehave(rule)
            else:
                work(path, person, rule)
        except RefusedError as error:
            self._json({"code": error.status, "message": str(error)}, error.status)
        except CutError:
            self.close_connection = True
            self.connection.close()

    def _misbehave(self, rule: Rule) -> None:
        if rule.cut:
            raise CutError
        assert rule.status is not None
        if isinstance(rule.answer, str):
            self._send(rule.status, rule.answer.encode(), "text/html; charset=utf-8", dict(rule.headers))
        else:
            self._json(rule.answer, rule.status, dict(rule.headers))

    def _remote_call(self, path: str, person: Person | None, rule: Rule | None) -> None:
        raw = self._body()
        found = REMOTE_CALL.match(path)
        if found is None or self.headers.get_content_type() != "application/json":
            raise RefusedError(404, "Not found")
        said = json.loads(raw or b"{}")
        self.server.desk.seen.append(Seen(request=found[3], account=person.name if person else None, said=said))
        answer = self._answer(found[2], found[3], person, said)
        if rule is not None and rule.done:
            self._misbehave(rule)
        elif isinstance(answer, str):
            self._send(302, b"", "text/plain", {"Location": self.server.endpoint + answer})
        else:
            self._json(self._absolute(answer))

    def _answer(self, service: str, method: str, person: Person | None, said: dict[str, Any]) -> Any:
        desk = self.server.desk
        if (service, method) == ("OAuthService", "IntrospectToken"):
            return desk.introspect(said)
        if person is None:
            raise RefusedError(401, "Unauthenticated")
        call = getattr(desk.services.get(service), method, None)
        if call is None:
            raise RefusedError(404, f"{service}/{method} is not there")
        return call(person, said)

    def _absolute(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Addresses of this server in full, as clients need them."""
        if "createUrl" in answer:
            return answer | {"createUrl": self.server.endpoint + answer["createUrl"]}
        if "files" in answer:
            return answer | {"files": [f | {"url": self.server.endpoint + f["url"]} for f in answer["files"]]}
        return answer

    def _get(self, path: str, person: Person | None, rule: Rule | None) -> None:
        desk = self.server.desk
        if path.startswith("/signed/"):
            found = desk.world.links.get(path.split("/")[2])
            if found is None or not found.is_file():
                raise RefusedError(404, "Not found")
            self._send(200, found.read_bytes(), "application/octet-stream")
            return
        wanted = LOG_STREAM.match(path)
        if wanted is None:
            raise RefusedError(404, "Not found")
        if person is None:
            raise RefusedError(401, "Unauthenticated")
        kernel = desk.world.kernel(person, wanted[1], wanted[2])
        if kernel.said_status == "QUEUED":
            raise RefusedError(404, "The session has not started")
        if kernel.is_live:
            self._stream(log_stream(kernel), rule.cut_after if rule else None)
        else:
            events = kernel.events[: desk.world.kept_events]
            self._send(200, json.dumps(events).encode(), "application/json")

    def _stream(self, events: Iterator[str], cut_after: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        for number, event in enumerate(events):
            if cut_after is not None and number >= cut_after:
                break
            self.wfile.write(event.encode())
            self.wfile.flush()
        self.close_connection = True

    def _put(self, path: str, person: Person | None, rule: Rule | None) -> None:
        blob = self.server.desk.world.blobs.get(path.rpartition("/")[2])
        if blob is None:
            raise RefusedError(404, "Not found")
        have = blob.path.stat().st_size
        span = re.match(r"bytes (\d+)-(\d+)/(\d+)$", self.headers.get("Content-Range", ""))
        length = int(self.headers.get("Content-Length") or 0)
        if length and (span is None or int(span[1]) == have):
            with blob.path.open("ab") as file:
                while length and (data := self.rfile.read(min(CHUNK, length))):
                    length -= len(data)
                    file.write(data)
                    if rule is not None and rule.cut_after is not None and file.tell() >= rule.cut_after:
                        raise CutError
            have = blob.path.stat().st_size
        else:
            self._body()
        if rule is not None and rule.done:
            self._misbehave(rule)
        elif have >= blob.size:
            self._send(200, b"", "text/plain")
        else:
            self._send(308, b"", "text/plain", {"Range": f"bytes=0-{have - 1}"} if have else {})

    # --- writing and reading ---

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {
            "Date": self.date_time_string(),
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
