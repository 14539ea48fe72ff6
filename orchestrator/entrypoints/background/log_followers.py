"""Followers of offline sessions: one thread per live session reads its output from the provider."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import structlog

from orchestrator.ports.providers import Handle, ProviderError, ProviderUnavailable, SupportsLogs
from orchestrator.services.context import Context
from orchestrator.services.worker_messages import ApplyResult, LogReader

log = structlog.get_logger()

MAX_PAUSE_S = 60.0


class Follower:
    """Keeps one follower per live offline session. `on_end` is called when an output has ended.

    A follower that loses its connection, or cannot apply a line yet, restarts from the first line after a pause and
    skips applied lines. It ends with its lease. Reconciling finds later output.
    """

    def __init__(self, ctx: Context, on_end: Callable[[], None], *, first_pause_s: float = 1.0) -> None:
        self._ctx, self._on_end, self._first_pause_s = ctx, on_end, first_pause_s
        self._stopping = threading.Event()
        self._listening: dict[str, threading.Thread] = {}

    def look(self) -> None:
        """Start a follower for each session that has none."""
        self._listening = {k: t for k, t in self._listening.items() if t.is_alive()}
        with self._ctx.uow() as tx:
            live = [x for x in tx.leases.live() if x.offline and x.external_id and x.id not in self._listening]
        for lease in live:
            with contextlib.suppress(ProviderUnavailable):  # its driver did not load, and reconciling also waits for it
                provider = self._ctx.providers.get(lease.provider)
                if isinstance(provider, SupportsLogs):
                    self._start(lease.id, provider)

    def _start(self, lease_id: str, provider: SupportsLogs) -> None:
        arguments = (lease_id, provider)
        thread = threading.Thread(target=self._listen, args=arguments, name=f"follow-{lease_id}", daemon=True)
        self._listening[lease_id] = thread
        thread.start()

    def stop(self) -> None:
        """Stop all followers. One that waits for its provider ends with the process."""
        self._stopping.set()

    def _listen(self, lease_id: str, provider: SupportsLogs) -> None:
        try:
            self._follow(lease_id, provider)
        except BaseException:
            log.exception("a follower has ended", session=lease_id)

    def _follow(self, lease_id: str, provider: SupportsLogs) -> None:
        reader, pause = LogReader(ctx=self._ctx, lease_id=lease_id), self._first_pause_s
        while (handle := self._handle(lease_id)) is not None:
            before = reader.seq
            self._once(reader, handle, provider)
            pause = self._first_pause_s if reader.seq > before else min(MAX_PAUSE_S, 2 * pause)
            self._stopping.wait(pause)

    def _once(self, reader: LogReader, handle: Handle, provider: SupportsLogs) -> None:
        try:
            result = reader.read(line for line in provider.follow(handle) if not self._stopping.is_set())
        except ProviderError as error:
            log.info("could not read a session's output", session=reader.lease_id, why=str(error))
        except Exception:
            log.exception("could not follow a session's output", session=reader.lease_id)
        else:
            if result is ApplyResult.TAKEN:
                self._on_end()
            else:
                log.info("a line cannot be applied yet", session=reader.lease_id, why=reader.reason)

    def _handle(self, lease_id: str) -> Handle | None:
        """The session with its current account, since its token may have been replaced. None if it has ended."""
        if self._stopping.is_set():
            return None
        with self._ctx.uow() as tx:
            lease = tx.leases.get(lease_id)
            if lease is None or not lease.state.is_live:
                return None
            account = tx.accounts.get(lease.account_id)
        return Handle.of(lease, account)
