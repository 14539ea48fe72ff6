"""Blind comparisons: people vote on two answers to a prompt without knowing which model wrote which."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.choices import GainKind, PlanName


class Choice(StrEnum):
    """What a rater said: the answer that was shown as 1 is better, the one shown as 2 is, or neither."""

    FIRST = "1"
    SECOND = "2"
    TIE = "tie"


class Ending(StrEnum):
    """Why a comparison was closed."""

    DECIDED = "decided"
    PLAN_ENDED = "plan ended"
    ALL_RATED = "all rated"
    BY_OWNER = "closed by its owner"


@dataclass(kw_only=True)
class BlindComparison:
    """A blind comparison of the answers of the evaluation `job_id`.

    `key` is a secret. It fixes the order of prompts, and the side of each answer for each rater. `identical` are the
    numbers of prompts with equal answers, out of `prompts`. `margin` was declared before the first vote (None: not
    declared), and is tested after the first `margin_prompts` prompts of the order. `gain` was declared with it: what an
    adapter that is not worse has to be better at.
    """

    id: str
    job_id: str
    member_id: str
    question: str
    plan: PlanName
    margin: float | None
    margin_prompts: int
    key: str
    prompts: int
    identical: list[int]
    created_at: float
    closed_at: float | None = None
    ending: Ending | None = None
    gain: GainKind | None = None


@dataclass(kw_only=True)
class Rater:
    """A person with a link to rate in a comparison. `name` is given by the comparison's owner.

    `link_hash` is the hash of an unused link's secret, `cookie_hash` that of the secret in the rater's browser. Both
    are None after the link was revoked.
    """

    id: str
    comparison_id: str
    name: str
    created_at: float
    link_hash: str | None
    cookie_hash: str | None = None
    opened_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A rater's choice for the prompt `number`, with a note. `at` is the time of the rater's first choice for it."""

    comparison_id: str
    number: int
    rater_id: str
    choice: Choice
    note: str
    at: float
