"""Simulated votes of people on two models: false claims, power and forecasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.report import Figure
from orchestrator.domain.trust.sign_test import Comparison, Outcome, Quality, compare, majority

RUNS = 20_000
MOST = 160
"""Decisive prompts of the whole plan."""
OUTCOMES = (Outcome.BASE, Outcome.ADAPTER, Outcome.TIE)
SEEN = ((14, 5), (12, 8), (18, 12), (25, 15), (22, 13), (45, 34))
"""Wins and losses of evaluations that are still open."""
FACTOR = 1.5


def votes() -> Iterator[Figure]:
    """All figures of votes."""
    draw = np.random.default_rng(20_260_614)
    for ties in (0.0, 0.36):
        yield from _equal(draw, ties)
    for prompts, raters, spread in ((25, 4, 2.0), (50, 3, 2.0), (240, 3, 1.0), (240, 3, 2.0)):
        yield _clustered(draw, prompts, raters, spread)
    for share, least in ((0.65, 0.95), (0.72, 0.99)):
        yield from _power(draw, share, least)
    yield from _forecasts(draw)


def _course(draw: np.random.Generator, share: float, ties: float, prompts: int) -> list[Outcome]:
    wins = draw.random(prompts) < share
    tied = draw.random(prompts) < ties
    return [OUTCOMES[2 if tie else int(win)] for win, tie in zip(wins, tied, strict=True)]


def _results(draw: np.random.Generator, share: float, ties: float) -> list[Comparison]:
    prompts = round(MOST / (1 - ties) * 1.2) + 20
    return [compare(_course(draw, share, ties, prompts)) for _ in range(RUNS)]


def _rate(found: Sequence[Comparison], quality: Quality) -> float:
    return sum(result.quality is quality for result in found) / len(found)


def _equal(draw: np.random.Generator, ties: float) -> Iterator[Figure]:
    found = _results(draw, 0.5, ties)
    for quality in (Quality.BETTER, Quality.WORSE):
        rate = _rate(found, quality)
        name = f"equal models, {ties:.0%} ties: called {quality}"
        yield Figure(name=name, value=round(rate, 4), bar="<= 0.027", ok=rate <= 0.027)


def _clustered(draw: np.random.Generator, prompts: int, raters: int, spread: float) -> Figure:
    """Several raters for each prompt. Prompts differ in how much they favour one model, by `spread` on logits."""
    by_wins = [majority([Outcome.ADAPTER] * wins + [Outcome.BASE] * (raters - wins)) for wins in range(raters + 1)]
    claims = 0
    for _ in range(RUNS):
        shares = 1 / (1 + np.exp(-draw.normal(0, spread, prompts)))
        wins = draw.binomial(raters, shares)
        claims += compare([by_wins[count] for count in wins]).quality is not Quality.OPEN
    rate = claims / RUNS
    name = f"equal models, {prompts} prompts with {raters} raters, prompt effect {spread:g}: any claim"
    return Figure(name=name, value=round(rate, 4), bar="<= 0.05", ok=rate <= 0.05)


def _power(draw: np.random.Generator, share: float, least: float) -> Iterator[Figure]:
    found = _results(draw, share, 0.0)
    rate = _rate(found, Quality.BETTER)
    name = f"true share of decisive wins {share}: called better within {MOST} decisive prompts"
    yield Figure(name=name, value=round(rate, 4), bar=f">= {least}", ok=rate >= least)
    if share == 0.72:
        mean = sum(result.wins + result.losses for result in found) / len(found)
        yield Figure(name="the same: mean decisive prompts", value=round(mean, 1), bar="<= 62", ok=mean <= 62)


def _forecasts(draw: np.random.Generator) -> Iterator[Figure]:
    """Forecasts of open evaluations, against evaluations whose true share is what their votes leave possible."""
    for wins, losses in SEEN:
        before = _mixed(wins, losses)
        expected = compare(before).more
        needed: list[int] = []
        for share in draw.beta(wins + 0.5, losses + 0.5, 2_000):
            result = compare(before + _course(draw, share, 0.0, MOST))
            needed.append(result.wins + result.losses - wins - losses)
        median = float(np.median(needed))
        ratio = (expected or 0) / median
        name = f"{wins} wins, {losses} losses: forecast {expected} more, simulated median {median:.0f}, ratio"
        ok = 1 / FACTOR <= ratio <= FACTOR
        yield Figure(name=name, value=round(ratio, 3), bar=f"within a factor of {FACTOR}", ok=ok)


def _mixed(wins: int, losses: int) -> list[Outcome]:
    """Wins and losses spread evenly, so that no look before has a claim."""
    placed = [((place + 0.5) / wins, Outcome.ADAPTER) for place in range(wins)]
    placed += [((place + 0.5) / losses, Outcome.BASE) for place in range(losses)]
    return [outcome for _, outcome in sorted(placed)]
