"""HTTP of the emulated hub: who asks, what they may read, where large files are, faults by rule."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from tests.emulators.hub.state import RefusedError, Repo, etag, missing
from tests.emulators.hub.writes import Writes
from tests.emulators.kaggle.faults import Rule, Rules

_NAME = r"([\w.-]+(?:/[\w.-]+)?)"
_INFO = re.compile(rf"^/api/(model|dataset)s/{_NAME}(?:/revision/([^/]+))?$")
_TREE = re.compile(rf"^/api/(model|dataset)s/{_NAME}/(?:tree/([^/]+)|lfs-files)$")
_RESOLVE = re.compile(rf"^(/datasets)?/{_NAME}/resolve/([^/]+)/(.+)$")
_CACHED = re.compile(rf"^/api/resolve-cache/(model|dataset)s/{_NAME}/([0-9a-f]{{40}})/(.+)$")
_COMMITS = re.compile(rf"^/api/models/{_NAME}/commits/([^/]+)$")
_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")


PIECE_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request: its line, and what it was signed with."""

    request: str
    authorization: str | None
    address: str


class HubEmulator:
    """A server in a thread of this process. `accounts` are names by token; `seen` is every request so far.

    Of its rules' fields it knows `status` with what belongs to it, `cut` and `hold`; with `hold` and `cut_after`
    nothing of a file after so many bytes is sent, and the request waits. `stalled` is set once one does. With `done` a
    request is carried out first. `at` is called at each instant of a request: when it begins, with each piece of its
    body, when it is carried out, and when its answer is sent.
    """

    def __init__(self, *repos: Repo, port: int = 0) -> None:
        self.accounts: dict[str, str] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.rules, self.seen = Rules(), list[Seen]()
        self.signed: dict[str, bytes] = {}
        self.writes = Writes(self)
        self.at: Callable[[str], object] = lambda _instant: None
        self.stalled, self.over = threading.Event(), threading.Event()
        for repo in repos:
            self.add(repo)
        self._server = _Server(port, self)
        number = self._server.server_address[1]
        self.endpoint, self.elsewhere = f"http://127.0.0.1:{number}", f"http://localhost:{number}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        self.rules.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a machine whose hub this is, with its cache in `home`."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

    def stall(self, match: str, after: int = 0) -> Rule:
        """Requests whose `METHOD path` matches get nothing of a file after so many bytes, and wait until this hub
        ends."""
        return self.rules.add(match, times=0, cut_after=after, hold=threading.Event())

    def add(self, repo: Repo) -> Repo:
        """Put a repository there."""
        self.repos[repo.kind, repo.id] = repo
        return repo

    def expire(self) -> None:
        """No address that was signed so far is good any more."""
        self.signed.clear()

    def sign(self, data: bytes, name: str) -> str:
        """An address on another host, good for these bytes, for whoever has it."""
        secret = secrets.token_hex(16)
        self.signed[secret] = data
        return f"{self.elsewhere}/signed/{name}?Expires=1900000000&Signature={secret}"

    def repo(self, kind: str, name: str, account: str | None) -> Repo:
        """The repository, if the account may know of it."""
        found = self.repos.get((kind, name))
        if found is None:
            raise missing(account)
        found.see(account)
        return found

    def search(self, query: Mapping[str, list[str]], account: str | None) -> list[dict[str, Any]]:
        """Models whose id has the words, most downloaded first, without those that the account may not know of."""
        words = query.get("search", [""])[0].lower()
        found = [r for r in self.repos.values() if r.kind == "model" and words in r.id.lower() and r.is_seen(account)]
        found.sort(key=lambda repo: -repo.downloads)
        told = frozenset(query.get("expand", ()))
        return [repo.listed(told) for repo in found[: int(query.get("limit", ["1000"])[0])]]

    def who(self, authorization: str | None) -> str | None:
        """The account behind a header; raises for a token that nobody has."""
        if authorization is None:
            return None
        account = self.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return account


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, hub: HubEmulator) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server
    _rule: Rule | None = None
    _start = 0
    _is_mute = False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, authorization = self.server.hub, self.headers.get("Authorization")
        parts = urlsplit(self.path)
        request = f"{self.command} {parts.path}"
        address = f"http://{self.headers.get('Host')}{self.path}"
        hub.seen.append(Seen(request=request, authorization=authorization, address=address))
        self._start = 0
        hub.at(f"begin {request}")
        body = self._body(request)
        self._rule = rule = hub.rules.strike(request, None)
        try:
            if rule is not None and rule.done:
                self._is_mute = True
                self._carry_out(parts, body, authorization)
                self._is_mute = False
            if rule is not None and rule.cut:
                self.close_connection = True
                self.connection.close()
            elif rule is not None and rule.status is not None:
                self._json(rule.answer, rule.status, rule.headers)
            else:
                self._carry_out(parts, body, authorization)
        except RefusedError as refusal:
            self._is_mute = False
            headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._json({"error": str(refusal)}, refusal.status, headers)

    def _body(self, request: str) -> bytes:
        """The body, read in pieces. A caller that dies in the middle ends the request."""
        body, left = bytearray(), int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, PIECE_BYTES))
            if not piece:
                raise ConnectionResetError
            body += piece
            left -= len(piece)
            self.server.hub.at(f"{len(body)} bytes of {request}")
        return bytes(body)

    def _carry_out(self, parts: SplitResult, body: bytes, authorization: str | None) -> None:
        hub = self.server.hub
        if self.command in ("POST", "PUT"):
            token = (authorization or "").removeprefix("Bearer ")
            account = hub.who(authorization)
            answer = hub.writes.answer(f"{self.command} {unquote(parts.path)}", body, account, token)
            hub.at(f"done {self.command} {parts.path}")
            self._json(answer)
        elif parts.path.startswith("/signed/"):
            self._signed(parse_qs(parts.query).get("Signature", [""])[0])
        else:
            self._answer(unquote(parts.path), parse_qs(parts.query), hub.who(authorization))
        self.wfile.flush()
        hub.at(f"sent {self.command} {parts.path}")

    def _answer(self, path: str, query: Mapping[str, list[str]], account: str | None) -> None:
        hub = self.server.hub
        if path == "/api/whoami-v2":
            if account is None:
                raise RefusedError(401, "Invalid username or password.")
            token = self.headers["Authorization"].removeprefix("Bearer ")
            self._json({"type": "user", "name": account} | hub.writes.rights(account, token))
        elif path == "/api/models":
            self._json(hub.search(query, account))
        elif found := _INFO.match(path):
            repo = hub.repo(found[1], found[2], account)
            repo.at(found[3] or "main")
            self._json(repo.info(blobs="blobs" in query))
        elif found := _COMMITS.match(path):
            repo = hub.repo("model", found[1], account)
            repo.at(found[2])
            self._json(*hub.writes.history(repo, found[2], int(query.get("p", ["0"])[0])))
        elif found := _TREE.match(path):
            self._listing(hub.repo(found[1], found[2], account), found[3])
        elif found := _RESOLVE.match(path):
            self._resolve(hub.repo("dataset" if found[1] else "model", found[2], account), found[3], found[4], account)
        elif found := _CACHED.match(path):
            self._small(hub.repo(found[1], found[2], account), found[3], found[4], account)
        elif "/xet-read-token/" in path:
            hub.over.wait()
        else:
            raise RefusedError(404, "Not found")

    def _listing(self, repo: Repo, revision: str | None) -> None:
        """All files of a commit; without one, all large files that use space."""
        if revision is None:
            self._json(self.server.hub.writes.large_files(repo))
            return
        repo.at(revision)
        self._json(repo.tree())

    def _resolve(self, repo: Repo, revision: str, name: str, account: str | None) -> None:
        repo.read(account)
        repo.at(revision)
        commit = repo.commit if revision == "main" else revision
        files = repo.files_at(commit)
        if name not in files:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        data = files[name]
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag(data, is_large=repo.is_large(name))}"'}
        headers["X-Linked-Size"] = str(len(data))
        headers |= self._by_xet(repo, name)
        if repo.is_large(name):
            self._send(302, b"", headers | {"Location": self.server.hub.sign(data, name)})
        else:
            where = f"/api/resolve-cache/{repo.kind}s/{repo.id}/{commit}/{name}"
            self._send(307, b"", headers | {"Location": where})

    def _by_xet(self, repo: Repo, name: str) -> dict[str, str]:
        if not (repo.xet and repo.is_large(name)):
            return {}
        route = f"{self.server.hub.endpoint}/api/{repo.kind}s/{repo.id}/xet-read-token/{repo.commit}"
        return {"X-Xet-Hash": repo.etag(name), "Link": f'<{route}>; rel="xet-auth"'}

    def _small(self, repo: Repo, commit: str, name: str, account: str | None) -> None:
        repo.read(account)
        data = repo.files_at(commit)[name]
        self._send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{etag(data, is_large=False)}"'})

    def _signed(self, secret: str) -> None:
        data = self.server.hub.signed.get(secret)
        if data is None:
            raise RefusedError(403, "AccessDenied")
        asked = _RANGE.match(self.headers.get("Range", ""))
        if asked is None:
            self._send(200, data, {"Accept-Ranges": "bytes"})
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self._start = start
        self._send(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _json(self, answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"} | dict(headers or {}))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if self._is_mute:
            return
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(body)

    def _send_body(self, body: bytes) -> None:
        if self._rule is None or self._rule.hold is None:
            self.wfile.write(body)
            return
        if self._rule.cut_after is not None:
            self.wfile.write(body[: max(0, self._rule.cut_after - self._start)])
        self.wfile.flush()
        self.server.hub.stalled.set()
        self._rule.hold.wait()
        self.close_connection = True
