"""The emulated service: routes, faults, and the switches that tests turn."""

from __future__ import annotations

import collections
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.emulators.drive.faults import Chaos, Rule, Rules
from tests.emulators.drive.files_api import FilesApi
from tests.emulators.drive.state import Contents, File, Problem
from tests.emulators.drive.tokens import Tokens
from tests.emulators.drive.uploads_api import UploadsApi
from tests.emulators.drive.wire import Cut, Reply, Request, Server

HTML = b"<!DOCTYPE html><html><title>Sorry</title><body>We're sorry, but your computer may be sending ...</body></html>"
REMEMBERED = 100_000


class Drive:
    """One person's Drive on `url`, with its bytes in `folder`; `with Drive(...)` serves until the block ends."""

    def __init__(self, folder: Path | None = None, port: int = 0) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="drive-") if folder is None else None
        self.contents = Contents(Path(self._temporary.name) if self._temporary else folder or Path())
        self.rules, self.tokens = Rules(), Tokens()
        self.requests: collections.deque[str] = collections.deque(maxlen=REMEMBERED)
        self.ranges: collections.deque[str] = collections.deque(maxlen=REMEMBERED)
        """The `Content-Range` of every request that had one."""
        self.email = "somebody@example.com"
        self._files = FilesApi(self.contents, lambda: self.email)
        self._uploads = UploadsApi(self.contents, self.tokens)
        self._server = Server(port, self._answer)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.contents.address = self.url
        self._server.start()

    def close(self) -> None:
        """Stop serving; what lies in the folder stays."""
        self._server.stop()
        self.contents.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def anonymous(self) -> bool:
        """Whether a session URL alone is permission enough."""
        return self._uploads.anonymous

    @anonymous.setter
    def anonymous(self, allowed: bool) -> None:
        self._uploads.anonymous = allowed

    def authorized_user(self) -> dict[str, str]:
        """Credentials that work here."""
        return self.tokens.authorized_user(self.url)

    def unleash(self, chaos: Chaos) -> None:
        """Let chance rule from now on."""
        self.contents.lag = chaos.lag
        self.rules.unleash(chaos)

    def files(self) -> list[File]:
        """Every file that is no folder, the planted ones too."""
        with self.contents.lock:
            return [f for f in self.contents.files.values() if not f.is_folder]

    def bytes_of(self, file: File) -> bytes:
        """What really lies there."""
        return self.contents.blob(file).read_bytes()

    # --- one request ---

    def _answer(self, request: Request) -> Reply:
        self.requests.append(request.line)
        if span := request.headers.get("content-range"):
            self.ranges.append(span)
        if request.path.startswith("/_"):
            return self._control(request)
        rule = self.rules.pick(request.line)
        if rule.delay_s:
            time.sleep(rule.delay_s)
        if rule.meanwhile is not None:
            rule.meanwhile()
        if rule.status is not None:
            if rule.done:
                self._perform(request, rule)
            request.drain()
            return _failure(rule)
        if rule.html:
            request.drain()
            return Reply(200, HTML, {"Content-Type": "text/html; charset=UTF-8"})
        reply = self._perform(request, rule)
        if rule.cut is not None:
            if request.method != "GET":
                raise Cut
            reply.cut = rule.cut
        return reply

    def _perform(self, request: Request, rule: Rule) -> Reply:
        try:
            return self._route(request, rule)
        except Problem as problem:
            request.drain()
            return _error(problem.status, problem.reason, str(problem), problem.domain)
        except (KeyError, TypeError, ValueError) as error:
            request.drain()
            return _error(400, "badRequest", f"Bad Request: {error}", "global")

    def _route(self, request: Request, rule: Rule) -> Reply:
        path = request.path
        if path == "/token":
            return self.tokens.exchange(request)
        if path == "/auth":
            return self.tokens.consent_page(request)
        if path.startswith("/upload/drive/v2/files"):
            made = self._uploads.answer(request, rule)
            self._maybe_twin(made)
            return made
        self.tokens.check(request)
        if rule.cut is not None and request.method != "GET" and not rule.done:
            raise Cut
        return self._files.answer(request, rule)

    def _maybe_twin(self, made: Reply) -> None:
        """Somebody else's file of the same name appears beside a new one."""
        chaos = self.rules.chaos
        if chaos is None or made.status != 200 or self._uploads.newest is None or not self.rules.chance(chaos.twins):
            return
        new, self._uploads.newest = self._uploads.newest, None
        metadata = {"title": new.title, "parents": [{"id": p} for p in new.parents], "properties": new.properties}
        self.contents.insert(metadata, b"not this one", planted=True)

    # --- switches, for tests in other processes ---

    def _control(self, request: Request) -> Reply:
        if request.path == "/_rules" and request.method == "DELETE":
            self.rules.clear()
        elif request.path == "/_rules":
            self.rules.add(Rule(**request.json()))
        elif request.path == "/_chaos":
            self.unleash(Chaos(**request.json()))
        elif request.path == "/_files":
            shown = [self.contents.resource(f) | {"planted": f.planted} for f in self.files()]
            return Reply.of({"items": shown, "used": self.contents.used})
        elif request.path == "/_settings":
            self._set(request.json())
        else:
            return _error(404, "notFound", "no such switch", "global")
        return Reply.of({})

    def _set(self, asked: dict[str, Any]) -> None:
        self.contents.limit = asked.get("limit", self.contents.limit)
        self.contents.lag = asked.get("lag", self.contents.lag)
        self.anonymous = asked.get("anonymous", self.anonymous)
        self.tokens.lifetime_s = asked.get("token_lifetime_s", self.tokens.lifetime_s)
        if asked.get("revoke"):
            self.tokens.revoke()
        if asked.get("expire"):
            self.tokens.expire()


def _failure(rule: Rule) -> Reply:
    assert rule.status is not None
    if rule.html:
        return Reply(rule.status, HTML, {"Content-Type": "text/html; charset=UTF-8"})
    domain = "usageLimits" if re.search(r"limit|quota", rule.reason, re.IGNORECASE) else "global"
    made = _error(rule.status, rule.reason, f"{rule.reason} (emulated)", domain)
    if rule.retry_after is not None:
        made.headers["Retry-After"] = str(rule.retry_after)
    return made


def _error(status: int, reason: str, message: str, domain: str) -> Reply:
    detail = {"domain": domain, "reason": reason, "message": message}
    return Reply.of({"error": {"errors": [detail], "code": status, "message": message}}, status)
