"""One-time login links for the dashboard. A code stays in memory for an hour or until it is used."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass

from orchestrator.domain.accounts import Actor, Role, Token
from orchestrator.services.context import Context, new_id

CODE_LIVES_S = 3_600.0
SESSION_DAYS = 30.0
MAX_CODES = 20
"""Maximum unused links per member. A new link replaces the member's oldest one."""


@dataclass(frozen=True, kw_only=True)
class _Code:
    member: Actor
    until: float


BROWSER = "browser"
"""The beginning of the names of tokens that browsers have."""


class Logins:
    """Login codes of members. Each works for one browser. Thread-safe."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._codes: dict[str, _Code] = {}
        self._lock = threading.Lock()

    def link(self, member: Actor) -> str:
        """A path that logs this member in once."""
        code, now = secrets.token_urlsafe(24), self._ctx.clock.now()
        with self._lock:
            self._codes = {h: c for h, c in self._codes.items() if c.until > now}
            theirs = [h for h, c in self._codes.items() if c.member.member_id == member.member_id]
            for oldest in theirs[: max(0, len(theirs) + 1 - MAX_CODES)]:
                self._codes.pop(oldest)
            self._codes[self._ctx.tokens.hash(code)] = _Code(member=member, until=now + CODE_LIVES_S)
        return f"/login/{code}"

    def link_for_admin(self) -> str:
        """A path that logs the first admin in once. It is printed when the server starts."""
        with self._ctx.uow() as tx:
            admin = next(m for m in tx.members.all() if m.role is Role.ADMIN)
        return self.link(Actor(member_id=admin.id, name=admin.name, role=admin.role))

    def forget(self, member_id: str) -> None:
        """Revoke this member's unused links."""
        with self._lock:
            self._codes = {h: c for h, c in self._codes.items() if c.member.member_id != member_id}

    def use(self, code: str, name: str = BROWSER) -> str | None:
        """A token for the browser with this `code`, or None if the code was used or has expired."""
        now = self._ctx.clock.now()
        with self._lock:
            found = self._codes.pop(self._ctx.tokens.hash(code), None)
        if found is None or found.until <= now:
            return None
        secret = self._ctx.tokens.new()
        token = Token(
            id=new_id("token", now),
            member_id=found.member.member_id,
            role=found.member.role,
            name=name,
            created_at=now,
            expires_at=now + SESSION_DAYS * 86_400,
        )
        with self._ctx.uow() as tx:
            if tx.members.get_for_share(token.member_id) is None:  # removed after the link was created
                return None
            tx.tokens.add(token, self._ctx.tokens.hash(secret))
        return secret
