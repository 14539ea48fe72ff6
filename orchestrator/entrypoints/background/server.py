"""One server process: HTTP and scheduler, from start to shutdown."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from orchestrator.adapters.data_folder import URL_FILE, refuse_served
from orchestrator.adapters.instance import Origin
from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.domain.errors import ConflictError
from orchestrator.entrypoints.background.log_lines import logging_to
from orchestrator.entrypoints.background.scheduler import Ticker
from orchestrator.entrypoints.http.app import make_app
from orchestrator.entrypoints.http.patience import protocol
from orchestrator.ports.providers import Providers
from worker.shared.files import write_atomically

BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The addresses of a running server. `link` logs the admin's browser in once."""

    url: str
    link: str
    token_file: str


def run(
    settings: Settings,
    *,
    on_ready: Callable[[Ready], None] = lambda _: None,
    providers: Providers | None = None,
    origin: Origin | None = None,
) -> None:
    """Serve until a signal stops the process. Raises `ConflictError` for a port, data folder or database in use."""
    with logging_to(sys.stderr):
        _serve(settings, on_ready, providers, origin)


def _serve(
    settings: Settings, on_ready: Callable[[Ready], None], providers: Providers | None, origin: Origin | None
) -> None:
    refuse_served(settings.folder)  # its port is taken as well, which says less
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104  compared, not bound
    try:
        app = build(settings, server_url=lambda: url, providers=providers, origin=origin)
    except BaseException:
        listener.close()
        raise
    ticker = Ticker(app, has_moved=origin is Origin.MOVED)
    try:
        leave_address(settings.folder, url)
        ticker.start()
        api = make_app(app)
        link = (settings.public_url or url) + api.state.server.logins.link_for_admin()
        on_ready(Ready(url=url, link=link, token_file=str(app.token_file)))
        config = uvicorn.Config(
            api,
            http=protocol(),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
            backlog=BACKLOG,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
        gc.freeze()  # startup objects stay, so collections can skip them

        _Server(config, api).run(sockets=[listener])
    finally:
        ticker.stop()
        app.close()


class _Server(uvicorn.Server):
    """Ends the open event streams before it waits for the end of all requests. They would never end by themselves."""

    def __init__(self, config: uvicorn.Config, api: FastAPI) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._api.state.server.event_notifier.close()
        self._api.state.live.close()
        self._api.state.server.app.running_chats.cancel()
        await super().shutdown(sockets)


def leave_address(folder: Path, url: str) -> None:
    """Write the server's address to a file, atomically."""
    write_atomically(folder / URL_FILE, url + "\n")


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)  # uvicorn does it later, and a caller of a server that is "ready" would be refused
    except OSError as error:
        listener.close()
        raise ConflictError(
            f"Could not use port {settings.port} of {settings.host} ({error.strerror}). Choose another one with --port."
        ) from error
    return listener
