"""One server process: HTTP and ticks, from a free port to the last open connection."""

from __future__ import annotations

import gc
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn

from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.domain.errors import ConflictError
from orchestrator.entrypoints.background.scheduler import Ticker
from orchestrator.entrypoints.http.app import make_app
from orchestrator.ports.providers import Providers

URL_FILE = "server.url"
BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Where a server that has come up is found; `link` logs its admin's browser in, once."""

    url: str
    link: str
    token_file: str


def run(
    settings: Settings,
    *,
    on_ready: Callable[[Ready], None] = lambda _: None,
    providers: Providers | None = None,
) -> None:
    """Serve until a signal says stop; raises `ConflictError` in words for a taken port or data folder."""
    _plain_logs()
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104  compared, not bound
    try:
        app = build(settings, server_url=lambda: url, providers=providers)
    except BaseException:
        listener.close()
        raise
    ticker = Ticker(app)
    try:
        leave_address(settings.folder, url)
        ticker.start()
        api = make_app(app)
        link = (settings.public_url or url) + api.state.server.logins.link_for_admin()
        on_ready(Ready(url=url, link=link, token_file=str(app.token_file)))
        config = uvicorn.Config(
            api, log_level="warning", access_log=False, timeout_graceful_shutdown=5, backlog=BACKLOG
        )
        gc.freeze()  # what is there by now stays: no collection need look at it again
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        ticker.stop()
        app.close()


def leave_address(folder: Path, url: str) -> None:
    """Write down where the server is; whoever waits for the file finds it whole."""
    aside = folder / f".{URL_FILE}"
    aside.write_text(url + "\n")
    aside.replace(folder / URL_FILE)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConflictError(
            f"port {settings.port} of {settings.host} cannot be used ({error.strerror}); choose another with --port"
        ) from error
    return listener


def _plain_logs() -> None:
    """One line per event on stderr, without colours that a log file cannot show."""
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
