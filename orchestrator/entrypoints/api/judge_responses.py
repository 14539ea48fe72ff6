"""API responses about judge models. Shares are from 0 to 1.

While people compare the same answers, no response says which model a judge prefers.
"""

from __future__ import annotations

from orchestrator.domain.judgements import JudgementState
from orchestrator.domain.trust.judge import Advice
from orchestrator.domain.trust.sign_test import Quality
from orchestrator.entrypoints.api.audit_responses import Interval
from orchestrator.entrypoints.api.responses import ResponseModel, Time


class JudgeEndpoint(ResponseModel):
    """An endpoint without its key. `consented_at` is when the member `consented_by` agreed to send answers there."""

    id: str
    name: str
    url: str
    model: str
    has_key: bool
    created_at: Time
    consented_at: Time | None
    consented_by: str


class JudgeConduct(ResponseModel):
    """How a judge behaved. `inconsistent` is the share of `pairs` with two different verdicts.

    `first` and `second` count inconsistent pairs in which the same place won twice. `bias_p` is the p-value of their
    difference. Failed pairs are not in `pairs`.
    """

    pairs: int
    failed: int
    inconsistent: Interval
    first: int
    second: int
    bias_p: float
    is_biased: bool
    is_usable: bool


class JudgeAgreement(ResponseModel):
    """Agreement with people on the prompts that both decided. `is_shown` says that the judge may promote."""

    shared: int
    equal: Interval
    kappa: float | None
    is_shown: bool


class JudgeResult(ResponseModel):
    """The prompts that a judge decided: won and lost by the trained model, and tied."""

    quality: Quality
    wins: int
    losses: int
    ties: int


class Judgement(ResponseModel):
    """A judgement so far. `evaluation` is the id of the evaluation's job. `reason` says why it does not run.

    It has `requests`, of which `answered` are stored. `failures` counts answers without a verdict by their cause.
    `used_tokens` are counted by the endpoint, or estimated for `estimated` answers. `url` is empty for a model that
    judged in the session of the evaluation. It has no budget, so `max_tokens` are those that it used. `is_hidden` says
    that people are comparing the answers. Then `people`, `advice`, `result` and `family` are null. `people` is also
    null without a closed comparison. `family` is a model family that the judge shares with the trained model (empty:
    none).
    """

    id: str
    evaluation: str
    state: JudgementState
    reason: str
    not_before: Time | None
    url: str
    model: str
    prompt_version: int
    prompts: int
    identical: int
    requests: int
    answered: int
    failures: dict[str, int]
    max_tokens: int
    used_tokens: int
    estimated: int
    created_at: Time
    finished_at: Time | None
    conduct: JudgeConduct
    is_hidden: bool
    people: JudgeAgreement | None
    advice: Advice | None
    result: JudgeResult | None
    family: str | None
    warnings: list[str]
