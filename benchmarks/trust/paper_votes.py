"""The votes of the paper, given by raters to the product's own comparison, and the verdict that follows from them."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.shards import Shard, in_shards
from benchmarks.tiny_job import say
from orchestrator.adapters.database.migrate import upgrade
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.domain.comparisons import Choice
from orchestrator.domain.trust.sign_test import Outcome
from orchestrator.domain.trust.verdict import Recommendation
from orchestrator.services import comparison_raters, comparison_rating, comparisons, jobs, models
from orchestrator.services.comparison_rating import Screen
from tests.helpers.evaluations import answers_of
from tests.helpers.verdicts import evaluate, trained
from tests.helpers.world import World

PAPER = [Outcome.ADAPTER] * 9 + [Outcome.BASE] * 23 + [Outcome.TIE] * 18
LEAST_ORDERS = 1_000
ORDERS = int(os.environ.get("BENCH_PAPER_ORDERS", str(LEAST_ORDERS)))
RATERS = ("Ann", "Ben")
"""A fifth of the prompts need two raters, who vote alike here."""


def paper_votes(folder: Path) -> Iterator[Figure]:
    """Judge an adapter by the paper's votes in many orders, and once by votes that must promote it."""
    answers = sum(in_shards(_judge_orders, folder, ORDERS), Counter[str]())
    promoted, orders = answers[Recommendation.PROMOTE], answers.total()
    yield Figure(
        name="orders of the paper's 50 votes (9 : 23 : 18)",
        value=orders,
        bar=f">= {LEAST_ORDERS}",
        ok=orders >= LEAST_ORDERS,
    )
    yield Figure(name="promoted, by votes through the comparison", value=promoted, bar="0", ok=promoted == 0)
    yield Figure(
        name="the same: verdicts",
        value={str(answer): number for answer, number in answers.items()},
        bar="reported",
        ok=True,
    )
    control = _Judge(folder / "control").verdict([Outcome.ADAPTER] * len(PAPER))
    yield Figure(name="control, all 50 votes for the adapter", value=control, bar="promote", ok=control == "promote")


def _judge_orders(shard: Shard) -> Counter[str]:
    chance, answers, judge = random.Random(shard.number), Counter[str](), _Judge(shard.folder)
    while answers.total() < shard.amount:
        answers[judge.verdict(chance.sample(PAPER, len(PAPER)))] += 1
        if answers.total() % 100 == 0:
            say(f"  {answers.total()} orders: {dict(answers)}")
    return answers


class _Judge:
    """A server's services over a database of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        engine = make_engine(f"sqlite:///{folder / 'trainhop.db'}")
        upgrade(engine)
        self._world = World(engine, folder)
        self._alice = self._world.actors["alice"]

    def verdict(self, outcomes: Sequence[Outcome]) -> Recommendation:
        """The verdict on a new job's adapter after raters have voted for these outcomes of its prompts."""
        job = trained(self._world)
        comparison = comparisons.start(self._world.ctx, self._alice, self._evaluated(job, len(outcomes)))
        raters = [self._rater(comparison.id, name) for name in RATERS]
        votes = 0
        while found := self._next(raters, votes):
            (rater, cookie), screen = found
            choice = _choice(screen, outcomes)
            comparison_rating.give(self._world.ctx, rater, cookie, screen=screen.name, choice=choice)
            self._world.clock.tick(1)
            votes += 1
        assert comparisons.status(self._world.ctx, self._alice, comparison.id).result is not None
        return models.verdict_of(self._world.ctx, self._alice, job).verdict.answer

    def _evaluated(self, job: str, prompts: int) -> str:
        """A finished evaluation of the job's last checkpoint, with two different answers to each prompt."""
        own = self._world.submit("alice", name="its evaluation")
        jobs.cancel(self._world.ctx, self._alice, own)  # no machine takes it
        made = evaluate(self._world.ctx.uow, self._world.job(job), own, prompts=prompts, identical=0)
        with self._world.ctx.uow() as tx:
            tx.evaluations.finish(made, [answers_of(own, number) for number in range(prompts)])
        return own

    def _rater(self, comparison: str, name: str) -> tuple[str, str]:
        _, link = comparison_raters.add_rater(self._world.ctx, self._alice, comparison, name)
        rater, cookie = comparison_raters.open_link(self._world.ctx, link)
        return rater.id, cookie

    def _next(self, raters: Sequence[tuple[str, str]], votes: int) -> tuple[tuple[str, str], Screen] | None:
        """The rater whose turn it is, or else the other one, with what they see. None if both have nothing to rate."""
        for place in range(len(raters)):
            rater = raters[(votes + place) % len(raters)]
            if (screen := comparison_rating.desk(self._world.ctx, *rater).screen) is not None:
                return rater, screen
        return None


def _choice(screen: Screen, outcomes: Sequence[Outcome]) -> Choice:
    """The vote that says the outcome of the prompt on the screen. The texts tell which answer is the adapter's."""
    number = re.search(r"\d+", screen.prompt[0][1])
    assert number is not None
    outcome = outcomes[int(number[0])]
    if outcome is Outcome.TIE:
        return Choice.TIE
    is_adapter_first = screen.answers[0].startswith("Another")
    return Choice.FIRST if is_adapter_first == (outcome is Outcome.ADAPTER) else Choice.SECOND
