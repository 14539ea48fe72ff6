"""The interface of the client of judge models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Remedy(StrEnum):
    """What helps after a request without an answer."""

    PERSON = "person"
    """Only a person can help: the key, the model's name, or the address is wrong."""
    RETRY = "retry"
    """The same request may succeed later."""
    NOTHING = "nothing"
    """The endpoint does not take this request, or its answer has no use. Others may succeed."""


class NoReply(Exception):
    """A request without a usable answer. The message has no text of the endpoint, which may repeat the key.

    `retry_after_s` is how long the endpoint wants to be left alone. `may_cost` says that it may have counted tokens.
    """

    def __init__(
        self, message: str, remedy: Remedy, *, retry_after_s: float | None = None, may_cost: bool = False
    ) -> None:
        super().__init__(message)
        self.remedy, self.retry_after_s, self.may_cost = remedy, retry_after_s, may_cost


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The text of an answer, and the tokens of request and answer as the endpoint counts them (None: it does not)."""

    text: str
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class JudgeAddress:
    """Where a request goes. An address may be inside the server's own network only with `anywhere`."""

    url: str
    model: str
    key: str = field(repr=False)
    anywhere: bool


class JudgeClient(Protocol):
    """Calls OpenAI-compatible chat endpoints, never inside a database transaction."""

    def check(self, url: str, *, anywhere: bool) -> str:
        """The address in its normal form. Raises `InvalidError` for one that cannot be used."""
        ...

    def ask(self, where: JudgeAddress, messages: Sequence[dict[str, str]], max_tokens: int) -> Reply:
        """Send one request with temperature 0. Raises `NoReply`."""
        ...
