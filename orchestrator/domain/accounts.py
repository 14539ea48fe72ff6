"""Members, their accounts and tokens, and the actor of a request.

Times are seconds since the Unix epoch, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """The role of a member, and of the tokens that act for it."""

    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"
    """Sees all jobs, and changes nothing but its own tokens."""


@dataclass(kw_only=True)
class Member:
    """A person who uses this installation, or who used it until `removed_at`.

    A removed member stays as a name, because jobs name their owner.
    """

    id: str
    name: str
    role: Role
    created_at: float
    removed_at: float | None = None
    hub_token: str = field(default="", repr=False)
    """The member's token for the Hugging Face hub, sealed by the vault."""


@dataclass(kw_only=True)
class Account:
    """One member's account at a provider, or (without a member) a pool of machines that is open to all.

    `config` holds the driver's own settings. A `paused` account gets no new leases. `not_before` is when the provider
    has room again. `credentials` are sealed by the vault. `consented_at` is when the owner agreed that jobs may run
    there. `problem` says in words what the owner must correct before anything can start there again.
    """

    id: str
    provider: str
    member_id: str | None
    name: str
    config: dict[str, Any]
    paused: bool = False
    not_before: float = 0.0
    note: str = ""
    credentials: str = field(default="", repr=False)
    consented_at: float | None = None
    problem: str = ""
    image: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a check on a machine of this account last found: its image and how each probe ended."""
    created_at: float
    token_hash: str | None = None
    """Of the machine that has joined by itself. The account is that machine, and its token opens nothing else."""


@dataclass(kw_only=True)
class OneTimeCode:
    """A one-time code, kept as its hash, with what it was used for.

    A notebook's code has its job, and then the lease and the run. `mailbox` is the place in the store `store` of the
    documents through which the notebook exchanges messages. It is empty if the notebook calls the server.

    A machine's code has the `provider` that it joins, and then the account that it has become: the member's own, or
    with `shared` one for all members.
    """

    code_hash: str
    job_id: str | None
    member_id: str
    created_at: float
    expires_at: float
    used_at: float | None = None
    lease_id: str | None = None
    nonce: str | None = None
    store: str = ""
    mailbox: str = ""
    provider: str = ""
    shared: bool = False
    account_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Token:
    """An API token without its secret."""

    id: str
    member_id: str
    role: Role
    name: str
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Team:
    """The settings of an installation for all members. Without a stored one, members see only their own jobs."""

    everyone_sees_jobs: bool = False


@dataclass(frozen=True, kw_only=True)
class Actor:
    """The member and role that a request acts for, as its token says. `team_sees_jobs` is the team's setting."""

    member_id: str
    name: str
    role: Role
    team_sees_jobs: bool = False

    def may_see(self, member_id: str) -> bool:
        """Members see and change what is their own. Admins see and change everything."""
        return self.role is Role.ADMIN or self.member_id == member_id

    @property
    def sees_all_jobs(self) -> bool:
        """Whether jobs of others may be seen. Only `may_see` allows to change them, or to read what they hold."""
        return self.role is not Role.MEMBER or self.team_sees_jobs

    def may_see_jobs_of(self, member_id: str) -> bool:
        """Whether the jobs of this member may be seen."""
        return self.sees_all_jobs or self.member_id == member_id

    @property
    def jobs_seen(self) -> str | None:
        """The member whose jobs a list shows. None means all members."""
        return None if self.sees_all_jobs else self.member_id
