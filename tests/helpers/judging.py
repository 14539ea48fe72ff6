"""A judge model on this computer, an endpoint for it, and evaluations that it judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.adapters.judge_client import WebJudge
from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.judgements import JudgeAnswer, JudgeEndpoint, Judgement
from orchestrator.ports.judges import JudgeAddress, Reply
from orchestrator.services import judge_endpoints, judgements
from orchestrator.services.judge_endpoints import JudgingContext
from orchestrator.services.judge_reports import JudgeReport, reports
from orchestrator.services.judging import work
from tests.emulators.judge import JudgeEmulator
from tests.helpers.evaluations import add_evaluation
from tests.helpers.world import Watch, World

KEY = "sk-canary-0123456789"


class WatchedJudge(WebJudge):
    """The real client. It refuses to send while a transaction is open."""

    def __init__(self, watch: Watch, **options: Any) -> None:
        super().__init__(**options)
        self._watch = watch

    def ask(self, where: JudgeAddress, messages: Sequence[dict[str, str]], max_tokens: int) -> Reply:
        self._watch.check()
        return super().ask(where, messages, max_tokens)


@dataclass
class Bench:
    """Alice, an admin with an endpoint at an emulated judge, and what she does. Only an admin's may be here."""

    world: World
    judge: JudgeEmulator
    actor: Actor
    context: JudgingContext

    @classmethod
    def of(cls, world: World, judge: JudgeEmulator) -> Bench:
        with world.ctx.uow() as tx:
            member = tx.members.get("alice")
            assert member is not None
            tx.members.save(replace(member, role=Role.ADMIN))
        judge.key = KEY
        actor = replace(world.actors["alice"], role=Role.ADMIN)
        return cls(world, judge, actor, JudgingContext(ctx=world.ctx, client=WatchedJudge(world.watch)))

    def limit(self, timeout_s: float) -> None:
        """The time limit of requests from now on."""
        self.context = replace(self.context, client=WatchedJudge(self.world.watch, timeout_s=timeout_s))

    def restart(self) -> None:
        """A new server process over the same database, with the same keys."""
        self.context = JudgingContext(
            ctx=replace(self.world.start_server(), vault=self.context.ctx.vault), client=self.context.client
        )

    def add(self, name: str = "house", **how: Any) -> JudgeEndpoint:
        wanted = {"url": self.judge.url, "model": self.judge.model, "key": self.judge.key, "consent": True}
        return judge_endpoints.add(self.context, self.actor, name=name, **(wanted | how))

    def evaluated(self, answers: int = 30, **how: Any) -> str:
        job = self.world.submit("alice")
        add_evaluation(self.world.ctx.uow, job, answers, **how)
        return job

    def start(self, job: str, endpoint: str = "house", **how: Any) -> Judgement:
        return judgements.start(self.context.ctx, self.actor, job, endpoint, **how)

    def judged(self, job: str, **how: Any) -> JudgeReport:
        """Start a judgement of this evaluation, and work on it once."""
        judgement = self.start(job, **how)
        work(self.context, judgement.id)
        return self.report(judgement)

    def resume(self, judgement: Judgement, max_tokens: int | None = None) -> JudgeReport:
        judgements.resume(self.context.ctx, self.actor, judgement.id, max_tokens)
        work(self.context, judgement.id)
        return self.report(judgement)

    def report(self, judgement: Judgement) -> JudgeReport:
        found = reports(self.context.ctx, self.actor, judgement.job_id)
        return next(one for one in found if one.judgement.id == judgement.id)

    def answers(self, judgement: Judgement) -> list[JudgeAnswer]:
        with self.context.ctx.uow() as tx:
            return tx.judgements.answers(judgement.id)
