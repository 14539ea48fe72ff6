"""A store on loopback that takes each file once, whole, by PUT."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class UploadServer:
    """Keeps what was put by path; other bytes for a path that was written before are refused with 409."""

    def __init__(self) -> None:
        self.taken: dict[str, bytes] = {}
        self.private: set[str] = set()
        """Methods that want a sign-in."""
        self.arrived = threading.Semaphore(0)
        """Released for every file that arrived."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Print nothing."""

            def do_GET(self) -> None:
                found = store.taken.get(self.path)
                self.send_response(401 if "GET" in store.private else 404 if found is None else 200)
                self.end_headers()
                self.wfile.write(found or b"")

            def do_PUT(self) -> None:
                body = self._body()
                if "PUT" in store.private:
                    self.send_response(401)
                    self.end_headers()
                    return
                new = store.taken.setdefault(self.path, body) == body
                self.send_response(201 if new else 409)
                self.end_headers()
                if new:
                    store.arrived.release()

            def _body(self) -> bytes:
                if length := self.headers["Content-Length"]:
                    return self.rfile.read(int(length))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
