"""HTTP of the emulated endpoint: one piece for each word, then the reason of the end, as llama-server and vLLM do."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with every request. `cut_after` ends the stream after so many pieces.

    `hold_after` waits there until `release` is set or the client hangs up. `endless` repeats the last piece.
    `gives_up` drops the first request for the second one, before its first word.
    """

    status: int = 200
    kind: str = "text/event-stream"
    body: bytes | None = None
    cut_after: int | None = None
    hold_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    endless: bool = False
    gives_up: bool = False


class ChatEmulator:
    """A server in a thread of this process. `hung_up` is set when a client has closed a stream before its end."""

    def __init__(self) -> None:
        self.key = ""
        self.models: tuple[str, ...] = ("base", "adapter")
        self.fault = Fault()
        self.seen: list[dict[str, Any]] = []
        self.hung_up = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.fault.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, chat: ChatEmulator) -> None:
        self.chat = chat
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        chat, body = self.server.chat, json.loads(self.rfile.read(int(self.headers["content-length"])))
        chat.seen.append(body)
        fault = chat.fault
        status = fault.status
        if chat.key and self.headers.get("authorization") != f"Bearer {chat.key}":
            status = 401
        elif body.get("model", chat.models[0]) not in chat.models:
            status = 404
        self.send_response(status)
        self.send_header("content-type", fault.kind if status == 200 else "application/json")
        self.end_headers()
        if status != 200 or fault.body is not None:
            self.wfile.write(fault.body or b'{"error": {"message": "no"}}')
            return
        if fault.gives_up and len(chat.seen) == 1:
            while len(chat.seen) == 1 and not fault.release.wait(0.02):
                pass
            return
        try:
            for piece in self._pieces(body, fault):
                self.wfile.write(f"data: {piece}\n\n".encode())
                self.wfile.flush()
        except OSError:
            chat.hung_up.set()

    def _raise_if_gone(self) -> None:
        """A model that reads a long prompt says nothing, so that only the connection's end tells of a hang-up."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise BrokenPipeError

    def _pieces(self, body: dict[str, Any], fault: Fault) -> Iterator[str]:
        lora = body.get("lora")
        scale = "" if lora is None else f" at {lora[0]['scale']}"
        words = f"I am {body.get('model', 'the only model')}{scale} and you said {body['messages'][-1]['content']}"
        texts = [word if not number else f" {word}" for number, word in enumerate(words.split())]
        for number, text in enumerate(texts):
            if number == fault.cut_after:
                return
            if number == fault.hold_after:
                while not fault.release.wait(0.02):
                    self._raise_if_gone()
            yield json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        while fault.endless:
            yield json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 4000}, "finish_reason": None}]})
        yield json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield json.dumps({"choices": [], "usage": {"completion_tokens": len(texts)}})
        yield "[DONE]"
