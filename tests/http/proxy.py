"""A bad line: what comes through it from the server is counted, and its connections break."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class BadLine:
    """A TCP relay to the server at `url`. `cuts` are the bytes after which the next connections break, one each."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self.cuts: list[int] = []
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self._target))
                left = self.cuts.pop(0) if self.cuts else 1 << 60
                _start(self._relay, near, upstream, 1 << 60, False)
                _start(self._relay, upstream, near, left, True)

    def _relay(self, source: socket.socket, target: socket.socket, left: int, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while left and (data := source.recv(min(left, 1 << 16))):
                target.sendall(data)
                left -= len(data)
                if counts:
                    self.passed += len(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def _start(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
