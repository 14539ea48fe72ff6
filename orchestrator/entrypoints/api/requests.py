"""What people and machines send, where the worker's protocol does not say it."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from orchestrator.domain.model import Role


class RequestModel(BaseModel):
    """Base of request bodies: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def _readable(text: str) -> str:
    if any(unicodedata.category(sign) in _UNSEEN for sign in text):
        raise ValueError("must not hold control characters or signs that nobody sees")
    return text.strip()


Name = Annotated[
    str,
    Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
    AfterValidator(_readable),
]


class Priority(RequestModel):
    """A place in the queue; above 0 only admins."""

    priority: Annotated[int, Field(ge=-1000, le=1000)]


class MemberCreate(RequestModel):
    """Somebody new."""

    name: Name
    role: Role = Role.MEMBER


class TokenCreate(RequestModel):
    """A token for a member (id or name; you, if left out) that works for `days`, one at least, or for ever."""

    member: Name | None = None
    name: Name = "cli"
    days: Annotated[float, Field(ge=1, le=36_500)] | None = None


class AccountCreate(RequestModel):
    """An account to connect; `config` is the driver's own. `credentials` are sealed at once and never shown again."""

    provider: Annotated[str, Field(min_length=1, max_length=32)]
    name: Name | None = None
    owner: Name | None = None
    config: dict[str, Any] = {}
    credentials: SecretStr | None = None


class AccountUpdate(RequestModel):
    """What to change; keys of `config` that are not named stay."""

    paused: bool | None = None
    config: dict[str, Any] | None = None
    credentials: SecretStr | None = None


class StoreUpdate(RequestModel):
    """The store to use; `credentials` may be left out where it was set up before. They are sealed and never shown."""

    credentials: SecretStr | None = Field(default=None, max_length=10_000)


class GrantsCreate(BaseModel):
    """More grants for a lease."""

    fence: int
    kind: Literal["checkpoint", "adapter"]
    count: Annotated[int, Field(ge=1, le=16)] = 1
