"""What judge models say: their conduct, agreement with people, advice, and what a verdict makes of it."""

from __future__ import annotations

import re

import pytest

from orchestrator.domain.comparisons import Choice
from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.judgements import JudgementState
from orchestrator.domain.trust.judge import LEAST_SHARED, Advice
from orchestrator.domain.trust.sign_test import Outcome, Quality, error_rates
from orchestrator.domain.trust.verdict import Recommendation
from orchestrator.services import comparison_raters, comparison_rating, comparisons, jobs, model_cards, models
from orchestrator.services.judge_reports import JudgeReport, report
from tests.emulators.judge import JudgeEmulator, always, fair, prefer
from tests.helpers.evaluations import answers_of
from tests.helpers.judging import Bench
from tests.helpers.verdicts import evaluate, trained, vote
from tests.helpers.world import World

WIN, LOSS, TIE = Outcome.ADAPTER, Outcome.BASE, Outcome.TIE


@pytest.fixture
def bench(world1: World, judge: JudgeEmulator) -> Bench:
    found = Bench.of(world1, judge)
    found.add()
    return found


def evaluated(bench: Bench, answers: int = 24) -> Evaluation:
    """A finished evaluation, with its answers, of a finished job's last checkpoint."""
    job = trained(bench.world)
    own = bench.world.submit("alice", name="its evaluation")
    jobs.cancel(bench.world.ctx, bench.world.actors["alice"], own)
    found = evaluate(bench.world.ctx.uow, bench.world.job(job), own)
    with bench.world.ctx.uow() as tx:
        tx.evaluations.finish(found, [answers_of(own, n) for n in range(answers)])
    return found


def verdict(bench: Bench, evaluation: Evaluation):
    return models.verdict_of(bench.world.ctx, bench.actor, evaluation.trained_job)


def test_always_first_is_flagged_and_promotes_nothing(bench: Bench, judge: JudgeEmulator) -> None:
    judge.conduct = always("first")
    evaluation = evaluated(bench)
    found = bench.judged(evaluation.job_id)
    assert (found.conduct.pairs, found.conduct.is_usable, found.conduct.is_biased) == (24, False, True)
    assert found.advice is Advice.ASK_PEOPLE
    assert found.warnings[0].startswith("The judge contradicts itself in 100 % of the pairs. Above 30% it is unusable.")
    assert found.warnings[1] == "The judge prefers the answer in the first place."
    assert "inconsistent in 100 % (86–100 %); first place 24, second 0 times" in found.conduct_in_words
    assert verdict(bench, evaluation).verdict.answer is Recommendation.NOT_ENOUGH


def test_a_judgement_that_was_deleted_meanwhile_is_not_found(bench: Bench) -> None:
    """Guard: with `next` alone, pausing a judgement while its evaluation was deleted was answered with 500."""
    with pytest.raises(NotFoundError, match="There is no judgement gone"):
        report(bench.world.ctx, bench.actor, "gone", evaluated(bench).job_id)


def test_a_judge_alone_may_only_advise_against(bench: Bench, judge: JudgeEmulator) -> None:
    """Guards: without `people.is_shown` in `advise` the judge alone promoted. Without `judge` in `_objections` a judge
    that finds the base better said nothing."""
    better = evaluated(bench)
    assert bench.judged(better.job_id).advice is Advice.ASK_PEOPLE
    found = verdict(bench, better)
    assert (found.verdict.answer, found.error_rate) == (Recommendation.NOT_ENOUGH, 0.0)
    assert found.verdict.reasons == ("There are no votes on the answers yet.",)
    assert found.advice == "Let people compare the answers of its evaluation."
    worse = evaluated(bench)
    judge.conduct = prefer("One")
    assert bench.judged(worse.job_id).advice is Advice.DO_NOT
    against = "A judge model prefers the base model to the adapter, and people have not decided."
    assert verdict(bench, worse).verdict.reasons == (against,)
    with pytest.raises(ConflictError, match="people have not decided"):
        models.promote(bench.world.ctx, bench.actor, "guide", worse.trained_job)
    vote(bench.world.ctx.uow, worse, [WIN] * 18 + [LOSS] * 2)
    assert verdict(bench, worse).verdict.answer is Recommendation.PROMOTE


def people_say(bench: Bench, evaluation: Evaluation, decided: int) -> None:
    """People find the adapter better on two of three prompts, which does not decide."""
    vote(bench.world.ctx.uow, evaluation, [LOSS if number % 3 == 0 else WIN for number in range(decided)])


def knowing(asked: dict) -> str:
    """The judge finds what people find: it knows the number of the prompt."""
    number = int(re.search(r"about (\d+)", asked["first"])[1])  # pyright: ignore[reportOptionalSubscript]
    liked = "One" if number % 3 == 0 else "Another"
    return "first" if asked["first"].startswith(liked) else "second"


@pytest.mark.parametrize(
    ("decided", "conduct", "advice", "answer"),
    [
        (60, knowing, Advice.PROMOTE, Recommendation.PROMOTE),
        (LEAST_SHARED - 1, knowing, Advice.ASK_PEOPLE, Recommendation.NOT_ENOUGH),
        (60, prefer("Another"), Advice.ASK_PEOPLE, Recommendation.NOT_ENOUGH),
    ],
)
def test_it_promotes_after_agreement_with_people(bench: Bench, judge, decided, conduct, advice, answer) -> None:
    """Guards: with `LEAST_SHARED` at 0, 49 prompts were enough. Without `kappa`, so was a judge that likes everything
    of one model."""
    evaluation = evaluated(bench, 84)
    people_say(bench, evaluation, decided)
    assert verdict(bench, evaluation).verdict.answer is Recommendation.NOT_ENOUGH
    judge.conduct = conduct
    found = bench.judged(evaluation.job_id)
    assert found.people is not None
    assert (found.people.shared, found.advice) == (decided, advice)
    judged = verdict(bench, evaluation)
    assert judged.verdict.answer is answer
    if answer is Recommendation.PROMOTE:
        assert judged.verdict.reasons[0].startswith("A judge model prefers the adapter to its base, and it agrees")
        assert judged.error_rate == pytest.approx(2 * error_rates(0.5).better)
        card = model_cards.card(bench.world.ctx, bench.actor, evaluation.trained_job)
        assert "| judge model | judge-1: promote. 84 pairs in both orders, 0 failed; inconsistent in 0 %" in card
        assert "agrees with people on 100 % of 60 prompts, kappa 1.00." in card
        (kept,) = model_cards.provenance(bench.world.ctx, bench.actor, evaluation.trained_job)["judges"]
        assert (kept["prompt"]["version"], kept["people"]["shared"], kept["advice"]) == (1, 60, "promote")
        assert len(kept["prompt"]["sha256"]) == 64


def test_a_judge_against_the_adapter_outweighs_others(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: with the newest judgement alone, judges were tried until one liked the adapter."""
    evaluation = evaluated(bench, 84)
    people_say(bench, evaluation, 60)
    judge.conduct = prefer("One")
    assert bench.judged(evaluation.job_id).advice is Advice.DO_NOT
    judge.conduct = knowing
    assert bench.judged(evaluation.job_id).advice is Advice.PROMOTE
    assert verdict(bench, evaluation).verdict.answer is Recommendation.DO_NOT


def test_an_unfinished_judgement_is_no_evidence(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: without the state in `evidence_of` a judgement was stopped as soon as it pleased."""
    evaluation = evaluated(bench)
    judge.conduct = prefer("One")
    found = bench.judged(evaluation.job_id, max_tokens=8_000)
    assert (found.judgement.state, found.advice) == (JudgementState.BUDGET_SPENT, Advice.DO_NOT)
    assert verdict(bench, evaluation).judges is None
    assert bench.resume(found.judgement, 100_000).judgement.state is JudgementState.DONE
    assert verdict(bench, evaluation).verdict.answer is Recommendation.DO_NOT


def test_a_result_is_hidden_while_people_compare(bench: Bench, judge: JudgeEmulator) -> None:
    """Guards: without `is_hidden` in `_report`, or in `evidence_of`, the owner learnt which model wins."""
    evaluation = evaluated(bench)
    judge.conduct = prefer("One")
    before = bench.judged(evaluation.job_id)
    assert (before.advice, before.is_hidden) == (Advice.DO_NOT, False)
    opened = comparisons.start(bench.world.ctx, bench.actor, evaluation.job_id)
    during = bench.report(before.judgement)
    assert (during.is_hidden, during.advice, during.result, during.people, during.family) == (True, *[None] * 4)
    judged = verdict(bench, evaluation)
    assert (judged.judges, judged.verdict.answer) == (None, Recommendation.NOT_ENOUGH)
    _, link = comparison_raters.add_rater(bench.world.ctx, bench.actor, opened.id, "Ann")
    rater, cookie = comparison_raters.open_link(bench.world.ctx, link)
    for _ in range(5):
        screen = comparison_rating.desk(bench.world.ctx, rater.id, cookie).screen
        assert screen is not None
        comparison_rating.give(bench.world.ctx, rater.id, cookie, screen=screen.name, choice=Choice.TIE)
    comparisons.close(bench.world.ctx, bench.actor, opened.id)
    after = bench.report(before.judgement)
    assert (after.advice, after.people is not None, after.is_hidden) == (Advice.DO_NOT, True, False)
    assert after.people_in_words


def test_a_fair_judge_is_not_flagged(bench: Bench, judge: JudgeEmulator) -> None:
    judge.conduct = fair("Another", 0.6)
    found = bench.judged(evaluated(bench, 60).job_id)
    assert (found.conduct.is_usable, found.conduct.is_biased, found.warnings) == (True, False, ())
    assert found.result is not None
    assert (found.result.quality, found.result.losses) == (Quality.BETTER, 0)


def test_a_judge_of_the_same_family_is_named(bench: Bench, judge: JudgeEmulator) -> None:
    judge.model = "Qwen/Qwen3-32B"
    bench.add("qwen")
    job = bench.world.submit("alice", base_model="Qwen/Qwen2.5-1.5B-Instruct")
    with bench.world.ctx.uow() as tx:
        tx.evaluations.add(found := _bare(bench.world, job))
        tx.evaluations.finish(found, [answers_of(job, n) for n in range(4)])
    report: JudgeReport = bench.judged(job, endpoint="qwen")
    assert report.family == "qwen"
    assert report.warnings == ("Judge and base model are both of the family qwen. Judges prefer their own family.",)


def _bare(world: World, job: str) -> Evaluation:
    return Evaluation(
        job_id=job,
        trained_job=job,
        owner="alice",
        checkpoint_sha256="c" * 64,
        adapter_sha256=None,
        settings={},
        created_at=1.0,
        finished_at=world.clock.now(),
    )


def test_a_judged_evaluation_stays_as_evidence(bench: Bench) -> None:
    """Guard: without `judgements` in `_refuse_if_evidence` a judgement that was lost could be deleted."""
    evaluation = evaluated(bench)
    bench.judged(evaluation.job_id)
    with pytest.raises(ConflictError, match="is part of the evidence"):
        jobs.delete(bench.world.ctx, bench.actor, evaluation.job_id)
    jobs.delete(bench.world.ctx, bench.actor, evaluation.trained_job)
    jobs.delete(bench.world.ctx, bench.actor, evaluation.job_id)
    with bench.world.ctx.uow() as tx:
        assert tx.judgements.of_evaluation(evaluation.job_id) == []
