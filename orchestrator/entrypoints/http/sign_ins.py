"""Sign-ins at stores that people have begun in a browser. One stays in memory until it is used, for a while."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.stores import SignIn
from orchestrator.services import stores
from orchestrator.services.context import Context

LIVES_S = 900.0
MAX_PENDING = 5
"""Maximum sign-ins of one browser session. A new one replaces the oldest."""
_GONE = (
    "This browser has no such sign-in: it was used, it is older than 15 minutes, or the server was restarted. "
    "Begin again."
)


@dataclass(frozen=True, kw_only=True)
class _Pending:
    session: str
    store: str
    options: Mapping[str, Any]
    sign_in: SignIn
    until: float


class SignIns:
    """Sign-ins by their state. Each works once, for the browser session that began it. Thread-safe."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()

    def begin(self, session: str, store: str, client: str, options: Mapping[str, Any], redirect: str) -> str:
        """The address where the person agrees. Raises `InvalidError` for an unfit client or unfit options."""
        stores.check_options(self._ctx, store, options)
        sign_in, now = stores.sign_in(self._ctx, store, client), self._ctx.clock.now()
        address, state = sign_in.begin(redirect)
        begun = _Pending(session=session, store=store, options=options, sign_in=sign_in, until=now + LIVES_S)
        with self._lock:
            self._pending = {s: p for s, p in self._pending.items() if p.until > now}
            mine = [s for s, p in self._pending.items() if p.session == session]
            for oldest in mine[: max(0, len(mine) + 1 - MAX_PENDING)]:
                self._pending.pop(oldest)
            self._pending[state] = begun
        return address

    def finish(self, session: str, state: str, answer: str) -> stores.StoreState:
        """Use the store with the sign-in that `answer` completes. Raises an error that says what does not work."""
        with self._lock:
            begun = self._pending.get(state)
            if begun is None or begun.session != session or begun.until <= self._ctx.clock.now():
                raise InvalidError(_GONE, [("/answer", _GONE)])
            self._pending.pop(state)
        credentials = stores.finish_sign_in(begun.sign_in, answer)
        return stores.use_store(self._ctx, begun.store, credentials, begun.options)
