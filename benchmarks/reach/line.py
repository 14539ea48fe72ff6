"""A TCP line to a server that can be taken away and given again: connections break, and new ones are refused."""

from __future__ import annotations

import contextlib
import socket
import threading


class Line:
    """A relay on a port of its own to `port` of `host`. `cut` ends every connection until `mend`."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._target = (host, port)
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(listen)
        self.port = self._listener.getsockname()[1]
        self._is_cut, self._is_closed = False, False
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    @property
    def url(self) -> str:
        """The server's address through this line."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Take the line away."""
        self._is_cut = True
        for one in list(self._open):
            _end(one)

    def mend(self) -> None:
        """Give it again."""
        self._is_cut = False

    def close(self) -> None:
        """End the relay."""
        self._is_closed = True
        self.cut()
        _end(self._listener)
        self._listener.close()

    def _serve(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                onward = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self._open |= {near, onward}
            for source, target in ((near, onward), (onward, near)):
                threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.carry(data, target)
        for one in (source, target):
            _end(one)
        self._open.discard(source)
        source.close()

    def carry(self, data: bytes, target: socket.socket) -> None:
        """Pass a piece on. An error breaks the connection."""
        target.sendall(data)

    def join(self) -> None:
        """Serve until this process ends."""
        self._serving.join()


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
