"""Listening to machines that cannot call: one thread per live session, which reads its output from the provider."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import structlog

from orchestrator.ports.providers import Context, Handle, ProviderError, ProviderUnavailable, SupportsLogs
from orchestrator.services.reconcile import handle_of
from orchestrator.services.worker_messages import ApplyResult, LogReader

log = structlog.get_logger()

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0


class Follower:
    """Keeps one listener per live session whose machine cannot call. `on_end` is told whenever an output has ended.

    A listener that loses its connection, or cannot apply a line now, begins again after a pause from the first line; what
    it has dealt with is passed over. It ends with its lease: what comes later is found by reconciling.
    """

    def __init__(self, ctx: Context, on_end: Callable[[], None]) -> None:
        self._ctx, self._on_end = ctx, on_end
        self._stopping = threading.Event()
        self._listening: dict[str, threading.Thread] = {}

    def look(self) -> None:
        """Start a listener for every session that has none yet."""
        self._listening = {k: t for k, t in self._listening.items() if t.is_alive()}
        with self._ctx.uow() as tx:
            live = [x for x in tx.live_leases() if x.offline and x.external_id and x.id not in self._listening]
        for lease in live:
            with contextlib.suppress(ProviderUnavailable):  # its driver did not load: reconciling waits for it, too
                provider = self._ctx.providers.get(lease.provider)
                if isinstance(provider, SupportsLogs):
                    self._start(lease.id, provider)

    def _start(self, lease_id: str, provider: SupportsLogs) -> None:
        arguments = (lease_id, provider)
        thread = threading.Thread(target=self._listen, args=arguments, name=f"follow-{lease_id}", daemon=True)
        self._listening[lease_id] = thread
        thread.start()

    def stop(self) -> None:
        """Tell all listeners to end; one that waits for its provider ends with the process."""
        self._stopping.set()

    def _listen(self, lease_id: str, provider: SupportsLogs) -> None:
        ear, pause = LogReader(ctx=self._ctx, lease_id=lease_id), FIRST_PAUSE_S
        while (handle := self._handle(lease_id)) is not None:
            before = ear.seq
            self._once(ear, handle, provider)
            pause = FIRST_PAUSE_S if ear.seq > before else min(MAX_PAUSE_S, 2 * pause)
            self._stopping.wait(pause)

    def _once(self, ear: LogReader, handle: Handle, provider: SupportsLogs) -> None:
        try:
            fate = ear.listen(line for line in provider.follow(handle) if not self._stopping.is_set())
        except ProviderError as error:
            log.info("a session's output cannot be read now", session=ear.lease_id, why=str(error))
        except Exception:
            log.exception("a session's output could not be followed", session=ear.lease_id)
        else:
            if fate is ApplyResult.TAKEN:
                self._on_end()
            else:
                log.info("a line must wait", session=ear.lease_id, why=ear.words)

    def _handle(self, lease_id: str) -> Handle | None:
        """The session with its account as it is now, whose token may have been replaced; None once it has ended."""
        if self._stopping.is_set():
            return None
        with self._ctx.uow() as tx:
            lease = tx.lease(lease_id)
            if lease is None or not lease.state.is_live:
                return None
            account = tx.account(lease.account_id)
        return handle_of(lease, {account.id: account} if account else {})
