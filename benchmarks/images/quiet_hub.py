"""A model hub that answers every question, and stops in the middle of the weights."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REVISION = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"


class QuietHub:
    """Serves the folder `files` as the model `org/quiet`; the weights' last half never comes."""

    model = "org/quiet"

    def __init__(self, files: Path) -> None:
        self._files, self._over = {path.name: path for path in files.iterdir()}, threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *_: Any) -> None:
                """Nothing is worth a line."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        """One request."""
        name = request.path.partition("?")[0].rpartition("/")[2]
        if request.path.startswith("/api/"):
            siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in self._files.items()]
            about = {"id": self.model, "modelId": self.model, "sha": REVISION, "siblings": siblings, "tags": []}
            self._send(request, json.dumps(about).encode(), {}, with_body=with_body)
        elif name in self._files:
            content = self._files[name].read_bytes()
            headers = {"X-Repo-Commit": REVISION, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self._send(request, content, headers, with_body=with_body, whole=name != WEIGHTS)
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        content: bytes,
        headers: dict[str, str],
        *,
        with_body: bool,
        whole: bool = True,
    ) -> None:
        request.send_response(200)
        for header, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(header, value)
        request.end_headers()
        if with_body:
            request.wfile.write(content if whole else content[: len(content) // 2])
            request.wfile.flush()
            if not whole:
                self._over.wait()
