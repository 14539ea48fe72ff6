"""A hub on the loopback with one model, for the real client: it can stall, refuse, and offer a file by Xet."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
Answer = tuple[int, dict[str, str], bytes]


class Hub(ThreadingHTTPServer):
    """`org/model` with these files. `mood(path)` may answer a request in the model's stead; `asked` holds all paths."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked = files, []
        self.mood: Callable[[str], Answer | None] = lambda path: None
        self.half: set[str] = set()
        self.by_xet = False
        self.over = threading.Event()
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Of a machine whose hub this is."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

    def stall(self) -> None:
        """Keep whoever asks waiting until the test is over."""
        self.stalled.set()
        self.over.wait()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(path)
        status, headers, body = hub.mood(path) or self._answer(path)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            name = path.rpartition("/")[2]
            with suppress(ConnectionError):  # whoever asked may have been killed, which is what some tests are about
                self.wfile.write(body[: len(body) // 2] if name in hub.half else body)
            if name in hub.half:
                with suppress(ConnectionError):
                    self.wfile.flush()
                hub.stall()

    def _answer(self, path: str) -> Answer:
        hub = self.server
        if path.startswith("/api/models/org/model/revision/"):
            return self._json({"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in hub.files]})
        if path.startswith("/api/models/org/model/tree/"):
            return self._json([self._entry(name, data) for name, data in hub.files.items()])
        if path.endswith(f"/xet-read-token/{COMMIT}"):
            hub.stall()
            return 503, {}, b""
        if (name := path.removeprefix(f"/org/model/resolve/{COMMIT}/")) in hub.files:
            etag = f'"{hashlib.sha256(hub.files[name]).hexdigest()}"'
            return 200, {"ETag": etag, "X-Repo-Commit": COMMIT} | self._xet(name), hub.files[name]
        return 404, {"X-Error-Code": "EntryNotFound"}, b""

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _xet(self, name: str) -> dict[str, str]:
        if not (self.server.by_xet and name.endswith(".safetensors")):
            return {}
        route = f"{self.server.url}/api/models/org/model/xet-read-token/{COMMIT}"
        return {"X-Xet-Hash": "a" * 64, "Link": f'<{route}>; rel="xet-auth"'}

    def _json(self, what: Any) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(what).encode()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_of(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.shutdown()
        thread.join()
        hub.server_close()
