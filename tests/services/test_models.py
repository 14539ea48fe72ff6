"""Verdicts and promotions: what counts as evidence, who may move what, and that the history forgets nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.audits import Audit, StrataKind
from orchestrator.domain.choices import GainKind
from orchestrator.domain.errors import ConflictError, ForbiddenError, NotFoundError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.models import MAX_CANDIDATES, MAX_MODELS, Candidate, Model, Move, MoveKind
from orchestrator.domain.storage import Dataset
from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.declared_gain import FALSE_GAIN
from orchestrator.domain.trust.sign_test import Outcome, error_rates
from orchestrator.domain.trust.verdict import Recommendation
from orchestrator.services import clones, jobs, model_cards, models
from orchestrator.services.check_calls import as_stored
from orchestrator.services.held_out_checking import held_out_of_card
from orchestrator.services.verdicts import Judged
from tests.helpers.evaluations import tasks
from tests.helpers.verdicts import evaluate, run, trained, vote
from tests.helpers.world import World
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.findings import Finding, Report
from worker.shared.job_spec import JobSpec

WIN, LOSS, TIE = Outcome.ADAPTER, Outcome.BASE, Outcome.TIE
BETTER = [WIN] * 18 + [LOSS] * 2
ADMIN = Actor(member_id="root", name="root", role=Role.ADMIN)


def evaluated(world: World, job: str, **how: Any) -> Evaluation:
    """A finished evaluation of a job's last checkpoint."""
    own = world.submit("alice", name="its evaluation")
    jobs.cancel(world.ctx, world.actors["alice"], own)  # no machine takes it
    return evaluate(world.ctx.uow, world.job(job), own, **how)


def proven(world: World, who: str = "alice", **spec: Any) -> str:
    """A finished job whose adapter people prefer."""
    job = trained(world, who, **spec)
    vote(world.ctx.uow, evaluated(world, job), BETTER)
    return job


def verdict(world: World, job: str) -> Judged:
    return models.verdict_of(world.ctx, world.actors["alice"], job)


def promote(world: World, job: str, who: Actor | str = "alice", name: str = "guide", **how: Any) -> Move:
    actor = world.actors[who] if isinstance(who, str) else who
    return models.promote(world.ctx, actor, name, job, **how)


def rollback(world: World, name: str = "guide", **how: Any) -> Move:
    return models.rollback(world.ctx, world.actors["alice"], "alice", name, **how)


def look(world: World, name: str = "guide") -> models.Look:
    return models.look(world.ctx, world.actors["alice"], "alice", name)


def test_an_adapter_that_people_prefer_is_promoted(world: World) -> None:
    job = proven(world)
    found = verdict(world, job)
    assert (found.verdict.answer, found.missing, found.comparisons) == (Recommendation.PROMOTE, (), 1)
    ended = world.job(job).updated_at
    world.clock.tick(5)
    move = promote(world, job)
    assert world.job(job).updated_at == ended  # its page counts the time until then
    assert (move.before, move.after, move.actor, move.against_verdict) == (None, job, "alice", False)
    assert move.reasons == ["People prefer the adapter to its base."]
    shown = look(world)
    assert [(e.candidate.job_id, e.is_promoted) for e in shown.entries] == [(job, True)]
    assert shown.entries[0].candidate.adapter_sha256 == world.job(job).adapter_sha256
    assert shown.moves == (move,)
    with pytest.raises(ConflictError, match="already promoted"):
        promote(world, job)


def test_a_job_that_nobody_evaluated_is_not_promoted(world: World) -> None:
    """Guard: without `refuse_unless` in `promote` it was, and nothing but its loss was known."""
    job = trained(world)
    found = verdict(world, job)
    assert found.verdict.reasons == ("The adapter is not evaluated yet.",)
    assert found.advice == "Evaluate it, and let people compare the answers."
    with pytest.raises(ConflictError, match=r"not enough evidence\..*not evaluated yet"):
        promote(world, job)
    own = evaluated(world, job, finished_at=None).job_id
    assert verdict(world, job).advice == "Evaluate it, and let people compare the answers."
    jobs.retry(world.ctx, world.actors["alice"], own)
    assert verdict(world, job).advice == "Its evaluation is running."
    with pytest.raises(NotFoundError, match="There is no model guide"):
        look(world)


def paper(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job), [LOSS] * 12 + [WIN] * 9 + [LOSS] * 11 + [TIE] * 18)


def no_votes(world: World, job: str) -> None:
    evaluated(world, job)


def itself(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, identical=100), [TIE] * 100)


def worse(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job), [LOSS] * 20)


def vetoed(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, vetoes=["It forgot general text."]), BETTER)


def truncated(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, truncated={"base": 0.0, "adapter": 0.11}), BETTER)


def truncated_base(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, truncated={"base": 0.11, "adapter": 0.0}), BETTER)


def few(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, prompts=29), BETTER)


def of_another_checkpoint(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, checkpoint_sha256="0" * 64), BETTER)


def margin_alone(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job), [WIN, LOSS] * 80, margin=0.2)


def gain(only_adapter: int = 13, **how: Any) -> Callable[[World, str], None]:
    """The adapter is as good as its base, and solves 11 more of 100 tasks."""

    def happens(world: World, job: str) -> None:
        made = evaluated(world, job, tasks=tasks(only_adapter=only_adapter, **how))
        vote(world.ctx.uow, made, [WIN, LOSS] * 80, margin=0.2, gain=GainKind.TASKS)

    return happens


def undeclared_gain(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, tasks=tasks()), [WIN, LOSS] * 80, margin=0.2)


def gain_without_tasks(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job), [WIN, LOSS] * 80, margin=0.2, gain=GainKind.TASKS)


def gain_of_a_worse_one(world: World, job: str) -> None:
    made = evaluated(world, job, tasks=tasks())
    vote(world.ctx.uow, made, ([WIN, LOSS] * 4 + [LOSS]) * 17, margin=0.1, gain=GainKind.TASKS)


def gain_by_memory(world: World, job: str) -> None:
    asked = {"path": "sha256:" + "f" * 64, "sha256": "f" * 64, "type": "task"}
    made = evaluated(world, job, tasks=tasks(), settings={"tasks": asked})
    vote(world.ctx.uow, made, [WIN, LOSS] * 80, margin=0.2, gain=GainKind.TASKS)
    (compared,) = held_out_of_card(JobSpec.model_validate(world.job(job).spec), made.settings)
    leak = Finding(check="leak", level="stop", count=1, total=9, share=0.1, words="1 of 9 tasks", advice="Remove it.")
    report = Report(version=VERSION, rows=9, checked=9, findings=(leak,)).to_json()
    with world.ctx.uow() as tx:
        made = {"size": 7, "file_format": "jsonl", "row_format": "task", "rows": 9, "name": "t", "member_id": "alice"}
        tx.datasets.add(Dataset(sha256="f" * 64, key="datasets/f", created_at=1.0, **made))
        tx.datasets.add_report(as_stored(*compared.key, report, 1.0))


def overtaken(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job, at=1.0), BETTER)
    evaluated(world, job, at=2.0)


def audited(world: World, job: str, counts: list[int], max_wrong: float | None = 0.1) -> None:
    made = {"member_id": "alice", "seed": 7, "strata_kind": StrataKind.LENGTH, "row_format": "text"}
    audit = Audit(
        **made,
        sha256=world.job(job).spec["datasets"][0]["sha256"],
        strata={"short": 1_000},
        counts={"short": counts},
        max_wrong=max_wrong,
        created_at=1.0,
    )
    with world.ctx.uow() as tx:
        assert tx.audits.add(audit)


def failed_audit(world: World, job: str) -> None:
    vote(world.ctx.uow, evaluated(world, job), BETTER)
    audited(world, job, [40, 40, 0, 0])


@pytest.mark.parametrize(
    ("happens", "answer", "reason"),
    [
        (paper, "not enough evidence", "The votes do not decide yet."),
        (no_votes, "not enough evidence", "There are no votes on the answers yet."),
        (itself, "not enough evidence", "The votes do not decide yet."),
        (worse, "do not promote", "People prefer the base model to the adapter."),
        (vetoed, "do not promote", "It forgot general text."),
        (truncated, "not enough evidence", "More than 10% of the answers were cut"),
        (truncated_base, "not enough evidence", "More than 10% of the answers were cut"),
        (few, "not enough evidence", "The evaluation has 29 prompts, and a verdict needs at least 30."),
        (of_another_checkpoint, "not enough evidence", "The adapter is not evaluated yet."),
        (margin_alone, "not enough evidence", "but no gain elsewhere was declared with it."),
        (undeclared_gain, "not enough evidence", "but no gain elsewhere was declared with it."),
        (gain_without_tasks, "not enough evidence", "the declared gain is not shown: no task was scored."),
        (gain(only_adapter=5), "not enough evidence", "not shown: the adapter solves 64 of 100 tasks, and its base 61"),
        (gain(cut=0.2), "not enough evidence", "not shown: too many answers to the tasks were cut"),
        (gain_of_a_worse_one, "not enough evidence", "The votes do not decide yet."),
        (gain_by_memory, "not enough evidence", "not shown: some of the tasks are training rows."),
        (overtaken, "not enough evidence", "There are no votes on the answers yet."),
        (failed_audit, "do not promote", "The audit found more wrong rows in the training data than allowed."),
    ],
)
def test_evidence_that_promotes_nothing(
    world: World, happens: Callable[[World, str], None], answer: str, reason: str
) -> None:
    """Guards: without each of vetoes, truncation of either arm, prompts, audit, the margin and the trained tasks of a
    gain, and the comparison with `head` in `judge` one of these was promoted."""
    job = trained(world)
    happens(world, job)
    found = verdict(world, job)
    assert found.verdict.answer == answer
    assert reason in " ".join(found.verdict.reasons)
    with pytest.raises(ConflictError, match=f"The verdict is: {answer}"):
        promote(world, job)


def test_the_votes_of_the_paper_ask_for_more(world: World) -> None:
    job = trained(world)
    paper(world, job)
    found = verdict(world, job)
    assert (found.evidence.votes.wins, found.evidence.votes.losses, found.evidence.votes.ties) == (9, 23, 18)  # pyright: ignore[reportOptionalMemberAccess]
    assert found.advice == f"About {found.verdict.more} more ratings would probably decide."
    with pytest.raises(ConflictError, match=f"About {found.verdict.more} more ratings"):
        promote(world, job)


def test_every_comparison_raises_the_stated_error_rate(world: World) -> None:
    """Guard: with the rate of one comparison, whoever repeated it until it was won stated the same error."""
    job = trained(world)
    for at in (1.0, 2.0, 3.0):
        vote(world.ctx.uow, evaluated(world, job, at=at), [WIN] * 10 if at < 3 else BETTER)
    found = verdict(world, job)
    assert (found.verdict.answer, found.comparisons) == (Recommendation.PROMOTE, 3)
    assert found.error_rate == pytest.approx(3 * error_rates(0.5).better)


def test_the_worst_audit_counts_and_no_audit_is_said(world: World) -> None:
    """Guard: a job with one audited file of two was called audited."""
    job = proven(world)
    found = verdict(world, job)
    assert (found.evidence.audit, found.is_audited, found.audits[0].words) == (None, False, "not audited")
    audited(world, job, [78, 2, 0, 0], max_wrong=None)
    found = verdict(world, job)
    assert (found.evidence.audit, found.is_audited) == (None, True)
    assert found.audits[0].words.startswith("audit: 2 % wrong")
    spec = world.job(job).spec
    two = replace(world.job(job), spec=spec | {"datasets": [*spec["datasets"], {"sha256": "9" * 64}]})
    with world.ctx.uow() as tx:
        both = models.judge(tx, two)
    assert (both.is_audited, [audit.words for audit in both.audits][1]) == (False, "not audited")


@pytest.mark.parametrize(
    ("counts", "decision"), [([199, 1, 0, 0], Decision.PASS), ([25, 5, 0, 0], Decision.OPEN), ([40, 40, 0, 0], "fail")]
)
def test_the_decision_of_an_audit_is_part_of_the_evidence(world: World, counts: list[int], decision: str) -> None:
    job = proven(world)
    audited(world, job, counts)
    assert verdict(world, job).evidence.audit == decision


def test_what_is_not_recorded_promotes_nothing(world: World) -> None:
    """Guard: without `_missing`, an adapter of an unknown base was promoted."""
    job = proven(world, base_sha256=None)
    found = verdict(world, job)
    assert found.missing == ("the sha256 of the base model",)
    with pytest.raises(ConflictError, match="Not every file and setting behind this adapter is recorded"):
        promote(world, job)


def test_the_chain_goes_on_in_the_original_of_a_clone(world: World) -> None:
    """Guard: without the step to the original, half of a clone's training was not in its provenance."""
    origin = world.submit("alice", 4)
    run(world, saves=2)
    first = world.head(origin)
    clone = clones.clone(world.ctx, world.actors["alice"], origin, {"max_steps": 6}, checkpoint=first.sha256).id
    run(world)
    found = verdict(world, clone)
    assert found.missing == ()
    assert [(of, step) for of, step, _ in found.checkpoints] == [(origin, 3), (clone, 4), (clone, 6)]
    assert found.checkpoints[1][2] == first.sha256
    broken = replace(world.job(clone), cloned_from="job-gone")
    with world.ctx.uow() as tx:
        assert models.judge(tx, broken).missing == ("a checkpoint between the first one and the last",)


def test_only_a_finished_job_has_a_verdict(world: World) -> None:
    queued = world.submit("alice")
    for use in (lambda: verdict(world, queued), lambda: promote(world, queued)):
        with pytest.raises(ConflictError, match="is queued and has no adapter"):
            use()


def test_an_admin_can_force_it_and_that_stays_recorded(world: World) -> None:
    """Guards: without the role in `promote` a member forced it; without the verdict in the move nothing told of it."""
    job = trained(world)
    worse(world, job)
    with pytest.raises(ForbiddenError, match="Only an admin"):
        promote(world, job, force=True)
    move = promote(world, job, ADMIN, force=True)
    assert (move.member_id, move.actor, move.against_verdict) == ("alice", "root", True)
    assert move.reasons == ["People prefer the base model to the adapter."]
    assert look(world).promotion == move
    card = model_cards.card(world.ctx, world.actors["alice"], job)
    assert "| promoted | promoted against the verdict as guide on" in card
    assert model_cards.provenance(world.ctx, world.actors["alice"], job)["promoted"][0]["against_verdict"]
    with world.ctx.uow() as tx:
        (event,) = tx.events.of_kind(job, "job.promoted")
    assert event.reason == "promotion in model guide, promoted against the verdict"


def test_a_forced_move_with_a_good_verdict_is_no_forced_one(world: World) -> None:
    assert not promote(world, proven(world), ADMIN, force=True).against_verdict


def test_a_rollback_undoes_one_promotion_after_the_other(world: World) -> None:
    first, second, third = (proven(world) for _ in range(3))
    for job in (first, second, third):
        promote(world, job)
    assert look(world).rollback_to == second
    assert [rollback(world).after for _ in range(3)] == [second, first, None]
    with pytest.raises(ConflictError, match="Nothing is promoted in model guide"):
        rollback(world)
    moves = look(world).moves
    assert [move.number for move in moves] == [1, 2, 3, 4, 5, 6]
    assert [move.kind for move in moves] == [MoveKind.PROMOTION] * 3 + [MoveKind.ROLLBACK] * 3
    assert (moves[-1].verdict, moves[-1].against_verdict) == (None, False)


def test_a_rollback_to_a_forced_candidate_still_says_so(world: World) -> None:
    forced, good = trained(world), proven(world)
    promote(world, forced, ADMIN, force=True)
    promote(world, good)
    assert rollback(world).against_verdict


def test_of_two_promotions_at_the_same_time_one_wins(world: World) -> None:
    """Guard: without `_refuse_late` the later one replaced a candidate that its author had never seen."""
    mine, other = proven(world), proven(world)
    seen = 0

    def meanwhile() -> None:
        nonlocal seen
        seen += 1
        if seen == 3:  # after the first transaction of `promote`, before its second one
            world.watch.between = lambda: None
            promote(world, other)

    world.watch.between = meanwhile
    with pytest.raises(ConflictError, match=f"was changed by alice in the meantime: {other} is promoted now"):
        promote(world, mine)
    assert look(world).model.promoted == other
    with pytest.raises(ConflictError, match="in the meantime"):
        promote(world, mine, after=0)
    with pytest.raises(ConflictError, match="in the meantime"):
        rollback(world, after=0)
    assert promote(world, mine, after=1).before == other


def test_what_is_promoted_is_not_deleted(world: World) -> None:
    """Guards: without `_refuse_if_promoted` a model in use lost its adapter; without the look at its evaluation, the
    evidence for it."""
    job, other = proven(world), proven(world)
    promote(world, job)
    with world.ctx.uow() as tx:
        own = tx.evaluations.of_job(job)[0].job_id
    files = len(list(world.store.folder.rglob("*")))
    for kept, words in ((job, "The adapter of job"), (own, "is part of the evidence")):
        with pytest.raises(ConflictError, match=words):
            jobs.delete(world.ctx, world.actors["alice"], kept)
    assert len(list(world.store.folder.rglob("*"))) == files
    world.clock.tick(1)
    promote(world, other)
    jobs.delete(world.ctx, world.actors["alice"], job)
    shown = look(world)
    assert [(e.candidate.job_id, e.judged is None) for e in shown.entries] == [(other, False), (job, True)]
    assert shown.rollback_to is None
    assert rollback(world).after is None


def test_a_comparison_that_was_lost_is_not_deleted(world: World) -> None:
    """Guard: without `_refuse_if_evidence`, whoever deleted each lost comparison stated the error rate of one."""
    job = trained(world)
    own = evaluated(world, job, at=1.0)
    vote(world.ctx.uow, own, [LOSS] * 20)
    unrated = evaluated(world, job, at=2.0).job_id
    alice = world.actors["alice"]
    with pytest.raises(ConflictError, match=f"evidence about the adapter of job {job}. Delete that job first"):
        jobs.delete(world.ctx, alice, own.job_id)
    jobs.delete(world.ctx, alice, unrated)
    assert (verdict(world, job).verdict.answer, verdict(world, job).comparisons) == ("do not promote", 1)
    jobs.delete(world.ctx, alice, job)
    jobs.delete(world.ctx, alice, own.job_id)


def test_models_belong_to_the_owner_of_their_jobs(world: World) -> None:
    """Guard: without `owned` in `_finished`, bob promoted alice's adapter under his name."""
    job = proven(world)
    bob = world.actors["bob"]
    for use in (
        lambda: models.promote(world.ctx, bob, "guide", job),
        lambda: models.add(world.ctx, bob, "guide", job),
        lambda: models.verdict_of(world.ctx, bob, job),
        lambda: model_cards.card(world.ctx, bob, job),
    ):
        with pytest.raises(NotFoundError):
            use()
    promote(world, job)
    for use in (
        lambda: models.look(world.ctx, bob, "alice", "guide"),
        lambda: models.rollback(world.ctx, bob, "alice", "guide"),
    ):
        with pytest.raises(NotFoundError, match="There is no model guide"):
            use()
    assert models.listed(world.ctx, "bob") == []
    ((model, member, move),) = models.listed(world.ctx, None)
    assert (model.name, member, move.after if move else None) == ("guide", "alice", job)


def test_a_candidate_is_added_once_and_never_changes(world: World) -> None:
    job = trained(world)
    alice = world.actors["alice"]
    models.add(world.ctx, alice, "guide", job)
    added = look(world).entries[0].candidate
    world.clock.tick(10)
    models.add(world.ctx, alice, "guide", job)
    assert [entry.candidate for entry in look(world).entries] == [added]
    with world.ctx.uow() as tx:
        assert tx.models.names_of(job) == ["guide"]
        tx.models.add(Model(member_id="alice", name="guide", created_at=9.0, promoted=job))
        kept = tx.models.get_for_update("alice", "guide")
    assert kept is not None
    assert kept.promoted is None


def test_a_declared_gain_promotes_an_adapter_that_is_not_worse(world: World) -> None:
    """Its error rate is added: whoever declares has seen the scores. Guard: without `_false_gains` a second evaluation
    with other tasks was free."""
    job = trained(world)
    gain()(world, job)
    found = verdict(world, job)
    words = "the declared gain is shown: the adapter solves 72 of 100 tasks, and its base 61 (p 0.007)."
    assert found.verdict.answer == "promote"
    assert found.verdict.reasons[0].endswith(words)
    assert found.error_rate == pytest.approx(error_rates(0.5).better + FALSE_GAIN)
    card = model_cards.card(world.ctx, world.actors["alice"], job)
    assert "| declared gain | shown: the adapter solves 72 of 100 tasks, and its base 61 (p 0.007) |" in card
    shown = model_cards.provenance(world.ctx, world.actors["alice"], job)["comparison"]
    assert shown["gain"]["is_shown"] is True
    evaluated(world, job, tasks=tasks(), at=0.5)
    assert verdict(world, job).error_rate == pytest.approx(error_rates(0.5).better + 2 * FALSE_GAIN)
    promote(world, job)


def test_a_model_and_a_member_have_limits(world: World) -> None:
    """Guard: without them a program could fill the database with names."""
    job = trained(world)
    others = [world.submit("alice") for _ in range(MAX_CANDIDATES)]
    alice = world.actors["alice"]
    with world.ctx.uow() as tx:
        for number in range(MAX_MODELS):
            tx.models.add(Model(member_id="alice", name=f"guide-{number}", created_at=1.0))
        for other in others:
            tx.models.add_candidate(
                Candidate(member_id="alice", model="guide-0", job_id=other, adapter_sha256="a" * 64, added_at=1.0)
            )
    with pytest.raises(ConflictError, match="at most 1000 models"):
        models.add(world.ctx, alice, "guide", job)
    with pytest.raises(ConflictError, match="has 100 candidates, which is the most"):
        models.add(world.ctx, alice, "guide-0", job)
    assert models.add(world.ctx, alice, "guide-1", job).name == "guide-1"


def test_the_card_tells_what_is_known_today(world: World) -> None:
    job = trained(world, accept_findings=["secrets"])
    alice = world.actors["alice"]
    before = model_cards.card(world.ctx, alice, job)
    assert "Verdict: **not enough evidence**. The adapter is not evaluated yet." in before
    assert "| comparison by people | none |" in before
    assert "not audited; not checked |" in before
    assert "owner accepted it: secrets" in before
    assert before.startswith("---\nbase_model: ")
    paper(world, job)
    audited(world, job, [106, 39, 0, 0])
    after = model_cards.card(world.ctx, alice, job)
    assert (
        "open: 50 prompts, 9 won by the adapter, 23 by its base, 18 tied; share of the adapter 28 % (16–45 %)" in after
    )
    assert "| evaluation | 100 prompts" in after
    assert "audit: 27 % wrong (21–34 %), 145 rows, limit 10 %: fail" in after
    assert "loss on general text +0.010 nats (-0.010 to +0.030), 100 passages: none" in after
    assert "model-index" not in after


def test_the_provenance_has_every_hash(world: World) -> None:
    job = proven(world)
    promote(world, job)
    found = model_cards.provenance(world.ctx, world.actors["alice"], job)
    row = world.job(job)
    assert found["adapter"]["sha256"] == row.adapter_sha256
    assert found["base_model"]["sha256"] == "b" * 64
    assert [data["sha256"] for data in found["datasets"]] == [world.dataset]
    assert [(one["job"], one["sha256"]) for one in found["checkpoints"]] == [(job, row.head)]
    assert found["evaluation"]["checkpoint_sha256"] == row.head
    assert found["evaluation"]["settings"] == {"prompts": "held out", "max_tokens": 64}
    assert len(found["evaluation"]["settings_sha256"]) == 64
    assert (found["comparison"]["wins"], found["comparison"]["losses"]) == (18, 2)
    assert found["promoted"][0]["model"] == "guide"
    assert found["verdict"]["answer"] == "promote"


def test_a_veto_cannot_break_the_table_of_a_card(world: World) -> None:
    job = trained(world)
    evaluated(world, job, vetoes=["It says | and\n# more"])
    assert "| veto | It says \\| and # more |" in model_cards.card(world.ctx, world.actors["alice"], job)


def test_the_repository_keeps_models_apart(world: World) -> None:
    job = trained(world)
    with world.ctx.uow() as tx:
        for owner in ("alice", "bob"):
            model = Model(member_id=owner, name="guide", created_at=1.0)
            tx.models.add(model)
            tx.models.add_candidate(
                Candidate(member_id=owner, model="guide", job_id=job, adapter_sha256="a" * 64, added_at=1.0)
            )
        tx.models.add_move(model.move(job, None, MoveKind.PROMOTION, actor="bob", at=2.0))
        tx.models.save(model)
    with world.ctx.uow() as tx:
        assert [model.member_id for model in tx.models.promoting(job)] == ["bob"]
        assert [model.member_id for model in tx.models.some(None, 5)] == ["alice", "bob"]
        assert len(tx.models.some(None, 1)) == len(tx.models.some("alice", 5)) == 1
        assert tx.models.moves("alice", "guide") == []
        (move,) = tx.models.moves("bob", "guide")
        assert tx.models.newest_move(model) == move
        assert (move.number, move.verdict, move.reasons) == (1, None, [])
