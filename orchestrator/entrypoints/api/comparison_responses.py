"""API responses about blind comparisons. Shares are from 0 to 1.

Until a comparison is closed, no response says which model wrote or won anything.
"""

from __future__ import annotations

from orchestrator.domain.choices import GainKind
from orchestrator.domain.comparisons import Ending, PlanName
from orchestrator.domain.trust.sign_test import Quality
from orchestrator.domain.trust.win_rates import NotWorse
from orchestrator.entrypoints.api.audit_responses import Interval
from orchestrator.entrypoints.api.responses import ResponseModel, Time


class RaterAgreement(ResponseModel):
    """Agreement on the `prompts` that several people rated. `kappa` and `alpha` are null if all votes are equal."""

    prompts: int
    equal: int
    kappa: float | None
    alpha: float | None


class Rater(ResponseModel):
    """A person with a link to rate. `opened_at` is when the link was used, `revoked_at` when it was revoked."""

    id: str
    name: str
    ratings: int
    created_at: Time
    opened_at: Time | None
    revoked_at: Time | None


class RaterLink(ResponseModel):
    """A rater's link. It works in one browser, and is shown only here."""

    id: str
    name: str
    url: str


class WinRate(ResponseModel):
    """The adapter's share of the decisive prompts, with its interval of 95 %."""

    share: Interval
    decisive: int
    ties: int


class MarginTest(ResponseModel):
    """Whether the adapter is not worse by more than the margin. `score` is its mean score, with a tie as half a win.

    `more` is the number of prompts that are missing for the test.
    """

    result: NotWorse
    score: Interval
    more: int


class ComparisonResult(ResponseModel):
    """The result of a closed comparison. `quality` is that of the adapter to its base model.

    The test rests on `wins`, `losses` and `ties` of the adapter. `similar_length` is the win rate among prompts with
    answers of a similar length. `agreement_too_low` says that the votes promote nothing.
    """

    words: str
    quality: Quality
    wins: int
    losses: int
    ties: int
    all_prompts: WinRate
    similar_length: WinRate
    margin: MarginTest | None
    agreement_too_low: bool


class BlindComparison(ResponseModel):
    """A blind comparison so far. `evaluation` is the id of the evaluation's job.

    `prompts` have answers, `identical` of them identical ones, which are ties. `decisive` and `ties` are the decided
    prompts. `waiting` need a vote of a second rater. `more` is about the number of ratings that are still needed.
    `result` is null until the comparison is closed, and `ending` says why it was.
    """

    id: str
    evaluation: str
    question: str
    plan: PlanName
    margin: float | None
    gain: GainKind | None
    created_at: Time
    closed_at: Time | None
    ending: Ending | None
    prompts: int
    identical: int
    ratings: int
    decisive: int
    ties: int
    waiting: int
    more: int
    agreement: RaterAgreement
    raters: list[Rater]
    result: ComparisonResult | None


class ComparisonOutline(ResponseModel):
    """A blind comparison without its counts."""

    id: str
    question: str
    plan: PlanName
    margin: float | None
    gain: GainKind | None
    created_at: Time
    closed_at: Time | None
    ending: Ending | None
