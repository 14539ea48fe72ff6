"""HTTP/1.1 by hand: quick enough for ten thousand uploads, and able to close a connection in the middle of a body."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = 1 << 20


class Cut(Exception):
    """Close the connection now, without a word."""


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    stream: io.BufferedIOBase
    left: int
    path: str = field(init=False)
    query: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path = parts.path
        self.query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}

    @property
    def line(self) -> str:
        return f"{self.method} {self.target}"

    def pieces(self, most: int | None = None) -> Iterator[bytes]:
        """The body, or its first `most` bytes."""
        allowed = self.left if most is None else min(most, self.left)
        while allowed > 0:
            piece = self.stream.read(min(PIECE, allowed))
            if not piece:
                raise Cut
            allowed -= len(piece)
            self.left -= len(piece)
            yield piece

    def body(self) -> bytes:
        return b"".join(self.pieces())

    def json(self) -> dict[str, Any]:
        return json.loads(self.body() or b"{}")

    def drain(self) -> None:
        for _ in self.pieces():
            pass


@dataclass
class Reply:
    """`body` is sent as it is; a `file` from `start` to `end` (excluded) instead; `cut` closes after so many bytes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    end: int = 0
    cut: int | None = None
    flip: int | None = None

    @classmethod
    def of(cls, data: Any, status: int = 200, **headers: str) -> Reply:
        return cls(status, json.dumps(data).encode(), {"Content-Type": "application/json; charset=UTF-8", **headers})


Answer = Callable[[Request], Reply]


class _Handler(socketserver.StreamRequestHandler):
    rbufsize = 1 << 16
    disable_nagle_algorithm = True
    timeout = 120
    server: Server

    def handle(self) -> None:
        try:
            while (request := self._read()) is not None:
                reply = self.server.answer(request)
                request.drain()
                self._send(request, reply)
                if request.headers.get("connection", "").lower() == "close":
                    return
        except (Cut, OSError, ValueError):
            return

    def _read(self) -> Request | None:
        line = self.rfile.readline(65_537)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (raw := self.rfile.readline(65_537)) not in (b"\r\n", b"\n", b""):
            name, _, value = raw.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        return Request(method, target, headers, self.rfile, int(headers.get("content-length", 0)))

    def _send(self, request: Request, reply: Reply) -> None:
        length = reply.end - reply.start if reply.file is not None else len(reply.body)
        lines = [f"HTTP/1.1 {reply.status} -", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if reply.file is None:
            if reply.cut is not None and reply.cut < length:
                self.wfile.write(head + reply.body[: reply.cut])
                raise Cut
            self.wfile.write(head + reply.body)
            return
        self.wfile.write(head)
        sent = 0
        for piece in _of_file(reply):
            allowed = piece if reply.cut is None else piece[: max(0, reply.cut - sent)]
            self.wfile.write(allowed)
            sent += len(piece)
            if len(allowed) < len(piece):
                raise Cut


def _of_file(reply: Reply) -> Iterator[bytes]:
    assert reply.file is not None
    at = reply.start
    with reply.file.open("rb") as file:
        file.seek(at)
        while at < reply.end:
            piece = file.read(min(PIECE, reply.end - at))
            yield flipped(piece, reply.flip, at)
            at += len(piece)


def flipped(piece: bytes, offset: int | None, at: int) -> bytes:
    """The piece (which begins at `at`) with one bit turned if the offset lies in it."""
    if offset is None or not at <= offset < at + len(piece):
        return piece
    changed = bytearray(piece)
    changed[offset - at] ^= 1
    return bytes(changed)


class Server(socketserver.ThreadingTCPServer):
    """One thread per connection; `stop` closes every one of them."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, port: int, answer: Answer) -> None:
        self.answer = answer
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        with self._guard:
            going = list(self._open)
        for each in going:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.server_close()
