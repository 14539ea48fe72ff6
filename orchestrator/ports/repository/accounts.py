"""Repositories of members, accounts, access tokens, one-time codes and idempotent replies."""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator.domain.accounts import Account, Member, OneTimeCode, Team, Token


class MemberRepository(Protocol):
    """Members of the installation. A removed member keeps a row, because jobs and datasets name their owner."""

    def get(self, member_id: str) -> Member | None:
        """The member, removed or not."""
        ...

    def get_by_name(self, name: str) -> Member | None:
        """The member of this name, removed or not."""
        ...

    def get_for_share(self, member_id: str) -> Member | None:
        """The member unless removed, locked so that no other transaction can remove them before this one ends."""
        ...

    def get_for_update(self, *member_ids: str) -> list[Member]:
        """Those of the members that are not removed, locked against all others until the transaction ends."""
        ...

    def all(self) -> list[Member]:
        """All members that are not removed, oldest first."""
        ...

    def add(self, member: Member) -> None:
        """Insert the member. Raises `ConflictError` if the name is taken."""
        ...

    def save(self, member: Member) -> None: ...
    def remove(self, member: Member) -> None:
        """Save the member, and delete their tokens, accounts and notification channels.

        Links of raters in their blind comparisons, and links to pages that they made, are revoked.
        """
        ...


class TeamRepository(Protocol):
    """The settings for all members."""

    def get(self) -> Team:
        """The stored settings, or those of a server that has stored none."""
        ...

    def save(self, team: Team) -> None: ...


class AccountRepository(Protocol):
    """Accounts at providers."""

    def get(self, account_id: str) -> Account | None: ...
    def all(self) -> list[Account]:
        """All accounts, oldest first."""
        ...

    def add(self, account: Account) -> None:
        """Insert the account. Raises `ConflictError` if the name or the member's place at the provider is taken."""
        ...

    def save(self, account: Account) -> None: ...
    def delete(self, account_id: str) -> None: ...


class TokenRepository(Protocol):
    """Access tokens. Only the hash of a token is stored."""

    def get_by_hash(self, token_hash: str) -> Token | None: ...
    def all(self, member_id: str | None = None) -> list[Token]:
        """All tokens, oldest first. With a member, only theirs."""
        ...

    def add(self, token: Token, token_hash: str) -> None: ...
    def delete(self, token_id: str) -> None: ...
    def delete_expired(self, before: float, limit: int) -> int:
        """Delete up to `limit` tokens that expired before that time. Returns how many were deleted."""
        ...


class CodeRepository(Protocol):
    """One-time codes, with which a notebook claims a job, or a machine joins."""

    def get(self, code_hash: str) -> OneTimeCode | None:
        """The code, locked against others until the transaction ends."""
        ...

    def with_mailbox(self) -> list[OneTimeCode]:
        """Codes of notebooks that exchange messages through a mailbox in a store."""
        ...

    def add(self, code: OneTimeCode) -> None: ...
    def save(self, code: OneTimeCode) -> None: ...
    def delete_expired(self, before: float) -> None:
        """Delete codes that expired before that time."""
        ...


class IdempotencyRepository(Protocol):
    """Replies to requests that carried an Idempotency-Key."""

    def get(self, member_id: str, key: str) -> tuple[str, dict[str, Any]] | None:
        """`(request hash, reply)` of an earlier request with this key."""
        ...

    def add(self, member_id: str, key: str, request_hash: str, reply: dict[str, Any], at: float) -> None:
        """Insert the reply. Raises `KeyTakenError` if another request with this key was faster."""
        ...

    def delete_expired(self, before: float) -> None:
        """Delete replies that were made before that time."""
        ...
