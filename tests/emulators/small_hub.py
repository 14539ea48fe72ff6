"""One public file of a hub, as `huggingface_hub` asks for it; Xet's part of it never answers if told so."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

CONTENT = b"weights" * 1000
COMMIT = "a" * 40


class SmallHub:
    """Serves `CONTENT` under every name. With `xet_hangs` the file has a Xet address, behind which nobody answers."""

    def __init__(self, *, xet_hangs: bool = False) -> None:
        self.asked: list[str] = []
        self.leaving = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing."""

            def do_HEAD(self) -> None:
                hub.asked.append(f"HEAD {self.path}")
                self._head()

            def do_GET(self) -> None:
                hub.asked.append(f"GET {self.path}")
                if "xet-read-token" in self.path:
                    hub.leaving.wait()
                    return
                self._head()
                self.wfile.write(CONTENT)

            def _head(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if xet_hangs:
                    self.send_header("X-Xet-Hash", "b" * 64)
                    self.send_header("X-Xet-Refresh-Route", f"{hub.url}/api/models/org/tiny/xet-read-token/{COMMIT}")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
