"""HTTP of the emulated judge: keys, the model's name, verdicts by a rule, and faults."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Conduct = Callable[[dict[str, Any]], str]
"""The judge's text for `{request, first, second}`."""
MODEL = "judge-1"


def prefer(words: str) -> Conduct:
    """A judge that prefers the answer that begins with these words, wherever it is."""
    return lambda asked: "first" if asked["first"].startswith(words) else "second"


def always(text: str) -> Conduct:
    """A judge that says the same of everything."""
    return lambda _: text


def fair(words: str, knows: float, seed: int = 1) -> Conduct:
    """A judge that knows the better answer of some requests, in both orders alike, and calls the others a tie."""

    def say(asked: dict[str, Any]) -> str:
        texts = sorted([asked["first"], asked["second"]])
        if random.Random(f"{seed} {texts}").random() >= knows:
            return "tie"
        return prefer(words)(asked)

    return say


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with one request. `hold` waits before the answer until it is set or the emulator ends.

    `drip_s` sends the header byte by byte, with this pause after each.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    kind: str = "application/json"
    hold: threading.Event | None = None
    drip_s: float = 0.0
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request. `asked` is what the judge compares (None: a trial)."""

    authorization: str | None
    body: dict[str, Any]
    asked: dict[str, Any] | None

    @property
    def pair(self) -> tuple[str, str]:
        """Both answers in their order."""
        assert self.asked is not None
        return self.asked["first"], self.asked["second"]


class JudgeEmulator:
    """A server in a thread of this process.

    `faults` strike the next comparisons one after the other, `trial_faults` the next trials, and `lasting` strikes all
    requests. Without `usage` it counts no tokens.
    """

    def __init__(self) -> None:
        self.key, self.model, self.conduct = "", MODEL, prefer("Another")
        self.faults: list[Fault] = []
        self.trial_faults: list[Fault] = []
        self.lasting: Fault | None = None
        self.usage: Callable[[int], Any] | None = lambda size: {
            "prompt_tokens": size // 4,
            "completion_tokens": 1,
            "total_tokens": size // 4 + 1,
        }
        self.seen: list[Seen] = []
        self.before: Callable[[Seen], object] = lambda _: None
        self.over, self.lock = threading.Event(), threading.Lock()
        self._server = _Server(self)
        self.host = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.host}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def compared(self) -> list[Seen]:
        """All requests but trials."""
        return [one for one in self.seen if one.asked is not None]

    def fault(self, seen: Seen) -> Fault | None:
        """The fault of this request."""
        with self.lock:
            self.seen.append(seen)
            waiting = self.trial_faults if seen.asked is None else self.faults
            return waiting.pop(0) if waiting else self.lasting


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, judge: JudgeEmulator) -> None:
        self.judge = judge
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        judge = self.server.judge
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(raw)
        seen = Seen(authorization=self.headers.get("authorization"), body=body, asked=_asked(body))
        fault = judge.fault(seen)
        judge.before(seen)
        if fault is not None:
            self._fail(fault)
        elif self.path != "/v1/chat/completions":
            self._send(404, b'{"error": "no such path"}')
        elif judge.key and seen.authorization != f"Bearer {judge.key}":
            # As some providers do: the answer repeats the key.
            self._send(401, json.dumps({"error": {"message": f"Incorrect API key: {seen.authorization}"}}).encode())
        elif body["model"] != judge.model:
            self._send(404, b'{"error": {"code": "model_not_found"}}')
        else:
            self._send(200, self._answer(judge, seen, len(raw)))

    @staticmethod
    def _answer(judge: JudgeEmulator, seen: Seen, size: int) -> bytes:
        text = "tie" if seen.asked is None else judge.conduct(seen.asked)
        message = {"role": "assistant", "content": text}
        found: dict[str, Any] = {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}
        if judge.usage is not None:
            found["usage"] = judge.usage(size)
        return json.dumps(found).encode()

    def _fail(self, fault: Fault) -> None:
        if fault.hold is not None:
            while not (fault.hold.is_set() or self.server.judge.over.wait(0.01)):
                pass
        if fault.cut:
            self.close_connection = True
            self.connection.close()
            return
        if fault.drip_s:
            self._drip(fault.drip_s)
            return
        self._send(fault.status, fault.body if fault.body is not None else b"{}", fault.kind, fault.headers)

    def _drip(self, pause_s: float) -> None:
        for byte in b"HTTP/1.0 200 OK\r\nX: " + b"a" * 10_000:
            if self.server.judge.over.is_set():
                return
            self.wfile.write(bytes([byte]))
            time.sleep(pause_s)  # the fault itself: a peer that is slow

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _asked(body: dict[str, Any]) -> dict[str, Any] | None:
    content = body["messages"][-1]["content"]
    if not content.startswith("{"):
        return None
    found, _ = json.JSONDecoder().raw_decode(content)
    return found
