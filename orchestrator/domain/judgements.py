"""Judgements: a judge model compares both answers to each prompt of an evaluation, in both orders."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.domain.trust.judge import Slot

MAX_ENDPOINTS = 20
"""Endpoints of one member."""
MAX_JUDGEMENTS = 20
"""Judgements of one evaluation."""


class JudgementState(StrEnum):
    """The state of a judgement. All but the last one can be resumed."""

    RUNNING = "running"
    PAUSED = "paused"
    BUDGET_SPENT = "budget spent"
    DONE = "done"


@dataclass(kw_only=True)
class JudgeEndpoint:
    """A member's address of an OpenAI-compatible chat endpoint, with the name of a model there.

    `sealed` is its key, sealed by the vault (empty: it needs none). `consented_at` is when the member named in
    `consented_by` agreed that prompts and answers are sent there.
    """

    id: str
    member_id: str
    name: str
    url: str
    model: str
    created_at: float
    sealed: str = field(default="", repr=False)
    consented_at: float | None = None
    consented_by: str = ""

    @property
    def has_key(self) -> bool:
        """Whether the endpoint gets a key."""
        return bool(self.sealed)


@dataclass(kw_only=True)
class Judgement:
    """The judgement of the evaluation `job_id` by a judge model. What describes its endpoint is a copy.

    `prompts` have answers, `identical` of them identical ones, which are not sent. It may use `max_tokens`.
    `used_tokens` are counted, and `reserved_tokens` may have been used by requests under way. `reason` says why it does
    not run. `fruitless` counts the batches since the last verdict. Nothing is sent before `not_before`.
    """

    id: str
    job_id: str
    member_id: str
    endpoint_id: str
    url: str
    model: str
    prompt_version: int
    prompts: int
    identical: list[int]
    max_tokens: int
    created_at: float
    used_tokens: int = 0
    reserved_tokens: int = 0
    state: JudgementState = JudgementState.RUNNING
    reason: str = ""
    fruitless: int = 0
    not_before: float = 0.0
    finished_at: float | None = None

    @property
    def requests(self) -> int:
        """The number of requests of the whole judgement: two for each pair of different answers."""
        return 2 * (self.prompts - len(self.identical))


@dataclass(frozen=True, kw_only=True)
class JudgeAnswer:
    """The judge's answer on one prompt in one order. It is never changed.

    `verdict` is None for a failure, which `failure` names. `is_estimated` says that the endpoint did not count tokens.
    """

    judgement_id: str
    number: int
    adapter_first: bool
    verdict: Slot | None
    failure: str
    tokens: int
    is_estimated: bool
    at: float
