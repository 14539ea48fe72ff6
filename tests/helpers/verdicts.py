"""A trained job with all the evidence that a verdict needs, for tests that take some of it away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.domain.blind_votes import first_arm, votes_needed
from orchestrator.domain.choices import GainKind
from orchestrator.domain.comparisons import BlindComparison, Choice, Ending, PlanName, Rater, Vote
from orchestrator.domain.evaluations import Arm, Evaluation
from orchestrator.domain.jobs import Job
from orchestrator.domain.trust.sign_test import Outcome
from orchestrator.ports.repository import UnitOfWork
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from tests.helpers.evaluations import REPORT
from tests.helpers.world import World
from worker.shared.manifest import Recipe


def run(world: World, base_sha256: str | None = "b" * 64, saves: int = 1) -> None:
    """One session that ends the queued job, with this hash of the base model in its checkpoints."""
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    spec = worker.start().spec
    recipe = Recipe.of(spec).model_copy(update={"base_sha256": base_sha256})
    for step in range(spec.total_steps - saves + 1, spec.total_steps + 1):
        worker.step = step
        worker.report()
        offer = worker.write(worker.manifest(recipe=recipe))
        assert worker.send(offer).committed
        worker.parent = offer.sha256
    worker.finish()
    reconcile(world.ctx)


def trained(world: World, who: str = "alice", base_sha256: str | None = "b" * 64, **spec: Any) -> str:
    """A finished job."""
    job = world.submit(who, **spec)
    run(world, base_sha256)
    return job


def evaluate(uow: UnitOfWork, job: Job, evaluation_job: str, *, at: float = 1.0, **changes: Any) -> Evaluation:
    """A finished evaluation of the job's last checkpoint, unless `changes` say otherwise."""
    how = {key: changes.pop(key) for key in ("checkpoint_sha256", "finished_at", "settings") if key in changes}
    made: dict[str, Any] = {
        "job_id": evaluation_job,
        "trained_job": job.id,
        "owner": job.member_id,
        "checkpoint_sha256": job.head,
        "adapter_sha256": job.adapter_sha256,
        "settings": {"prompts": "held out", "max_tokens": 64},
        "created_at": at,
        "answers_sha256": "e" * 64,
        "report": REPORT | changes,
        "finished_at": at,
    }
    evaluation = Evaluation(**made | how)
    with uow() as tx:
        tx.evaluations.add(evaluation)
    return evaluation


def vote(
    uow: UnitOfWork,
    evaluation: Evaluation,
    outcomes: Iterable[Outcome],
    *,
    margin: float | None = None,
    gain: GainKind | None = None,
) -> None:
    """A closed comparison of an evaluation with these outcomes by prompt, in their order."""
    wanted = list(outcomes)
    name = f"comparison-{evaluation.job_id[-8:]}-{len(wanted)}"
    made = BlindComparison(
        id=name,
        job_id=evaluation.job_id,
        member_id=evaluation.owner,
        question="Which answer is better?",
        plan=PlanName.STANDARD,
        margin=margin,
        margin_prompts=len(wanted),
        key="k" * 64,
        prompts=len(wanted),
        identical=[],
        created_at=evaluation.created_at,
        closed_at=evaluation.created_at,
        ending=Ending.BY_OWNER,
        gain=gain,
    )
    with uow() as tx:
        tx.comparisons.add(made)
        for who in ("one", "two"):
            rater = Rater(id=f"{name}-{who}", comparison_id=name, name=who, created_at=1.0, link_hash=None)
            tx.comparisons.add_rater(rater)
        for number, outcome in enumerate(wanted):
            for who in ("one", "two")[: votes_needed(made, number)]:
                tx.comparisons.put_vote(_vote(made, number, f"{name}-{who}", outcome))


def _vote(comparison: BlindComparison, number: int, rater_id: str, outcome: Outcome) -> Vote:
    """The vote that says this outcome, on the side where this rater sees the answer."""
    shown = {Arm.ADAPTER: Outcome.ADAPTER, Arm.BASE: Outcome.BASE}[first_arm(comparison.key, number, rater_id)]
    choice = Choice.TIE if outcome is Outcome.TIE else Choice.FIRST if outcome is shown else Choice.SECOND
    facts = {"comparison_id": comparison.id, "number": number, "rater_id": rater_id, "choice": choice, "note": ""}
    return Vote(**facts, at=float(number))
