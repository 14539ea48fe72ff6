"""A judge model on the machine of an evaluation: what is pinned and refused, and the judgement that comes of it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_model import make_tiny_llama
from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.domain.errors import ConflictError, InvalidError
from orchestrator.domain.jobs import StepTime
from orchestrator.domain.judgements import JudgementState
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.trust.judge import Advice
from orchestrator.domain.trust.verdict import Recommendation
from orchestrator.ports.catalog import BaseModel
from orchestrator.services import clones, comparisons, evaluation_times, judgements, model_cards, models, plans
from orchestrator.services.dispatch import to_pending
from orchestrator.services.evaluation_judges import TOO_LONG
from orchestrator.services.judge_reports import JudgeReport, reports
from orchestrator.services.judging import NO_VERDICT
from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.judge_models import make_nonsense
from tests.helpers.judged_answers import SHA256, Says, always, judged_answers, prefers
from tests.helpers.world import World
from tests.services.test_evaluations import answers, finish, offered, running, started, stored_evaluation, trained
from worker.shared import answers_file, judge_prompt
from worker.shared.answers_file import AnswersError
from worker.shared.evaluation_spec import EvaluationSpec, JudgeSpec
from worker.shared.evaluation_units import Arm, Measure
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Shape

JUDGE = "org/qwen2"
COMMIT = "c" * 40
SHAPE = Shape(
    hidden=4096, intermediate=11008, layers=32, vocabulary=32000, heads=32, kv_heads=32, head_dim=128, tied=False
)


@pytest.fixture
def known(world: World) -> dict[str, BaseModel]:
    """Models by their name. All others are as in every world."""
    found = {JUDGE: BaseModel(name=f"{JUDGE}@{COMMIT}", kind="qwen2", parameters=SHAPE.parameters, shape=SHAPE)}
    found[f"{JUDGE}@{COMMIT}"] = found[JUDGE]
    plain = world.ctx.catalog.model

    def model(name: str, token: str | None = None, *, with_modules: bool = False) -> BaseModel:
        return found.get(name) or plain(name, token, with_modules=with_modules)

    world.ctx.catalog.model = model  # pyright: ignore[reportAttributeAccessIssue]
    return found


def spec_of(world: World, job: str) -> JobSpec:
    return JobSpec.model_validate(world.job(job).spec)


def evaluated(world: World, says: Says, prompts: int = 40, judge: str = JUDGE) -> tuple[str, str]:
    """A finished job, and its evaluation, which a judge model has judged."""
    job = trained(world)
    made = started(world, job, max_prompts=prompts, judge=JudgeSpec(model=judge))
    worker = running(world)
    assert offered(worker, world.job(made).total_steps).committed
    finish(worker, judged_answers(prompts, says))
    assert world.job(made).state is JobState.SUCCEEDED
    return job, made


def reported(world: World, made: str) -> JudgeReport:
    (found,) = reports(world.ctx, world.actors["alice"], made)
    return found


@pytest.mark.usefixtures("known")
def test_the_judge_is_pinned_and_goes_to_the_machine(world: World) -> None:
    """Guards: without `pinned_judge` two sessions could judge with two commits, and without `need_with_judge` a judge
    went to a machine that is too small for it."""
    job = trained(world)
    made = started(world, job, max_prompts=35, judge=JudgeSpec(model=JUDGE))
    worker = running(world)
    assert worker.assignment is not None
    asked = worker.assignment.spec.evaluation
    assert asked is not None
    assert asked.judge is not None
    assert (asked.judge.model, asked.judge.prompt_version) == (f"{JUDGE}@{COMMIT}", judge_prompt.VERSION)
    judge_units = [unit for unit in worker.assignment.spec.evaluation_units if unit.measure is Measure.JUDGE]
    assert worker.assignment.spec.evaluation_units[-len(judge_units) :] == tuple(judge_units)
    assert sum(unit.end - unit.begin for unit in judge_units) == 2 * 35
    shown = world.job(made)
    assert 13 * 2**30 < shown.gpu_bytes < 22 * 2**30
    assert shown.gpu_bytes == asked.judge.gpu_bytes
    assert shown.host_bytes == asked.judge.host_bytes


def test_an_evaluation_without_a_judge_is_what_it_was(world: World) -> None:
    """Workers of the version before take it."""
    job = trained(world)
    made = started(world, job, max_prompts=35)
    assert "judge" not in world.job(made).spec["evaluation"]
    assert answers_file.read(io.BytesIO(answers(35))).head.judge is None
    worker = running(world)
    assert offered(worker, world.job(made).total_steps).committed
    finish(worker, answers(35))
    assert reports(world.ctx, world.actors["alice"], made) == []


@pytest.mark.usefixtures("known")
def test_a_job_file_names_the_judge_of_the_evaluation_that_follows(world: World, known: dict[str, BaseModel]) -> None:
    """Guard: without the judge in the pinned file, a clone was judged by the model of another day."""
    job = world.submit("alice", 4, val_set_size=0.9, evaluate={"judge": JUDGE})
    mine = spec_of(world, job).evaluate
    assert mine is not None
    assert mine.judge is not None
    assert mine.judge.model == f"{JUDGE}@{COMMIT}"
    known[JUDGE] = dataclasses.replace(known[JUDGE], name=f"{JUDGE}@{'d' * 40}")
    cloned = clones.clone(world.ctx, world.actors["alice"], job, {})
    assert JobSpec.model_validate(cloned.spec).evaluate == mine
    planned = plans.plan(world.ctx, world.actors["alice"], spec_of(world, job).model_copy(update={"evaluate": mine}))
    assert planned.evaluation is not None
    assert (planned.evaluation.judge, planned.evaluation.judge_gpu_bytes) == (mine.judge.model, mine.judge.gpu_bytes)
    assert planned.gpu_bytes != mine.judge.gpu_bytes


def refused(world: World, judge: str) -> str:
    job = trained(world)
    with pytest.raises(InvalidError) as error:
        started(world, job, judge=JudgeSpec(model=judge))
    assert error.value.problems[0][0] == "/judge/model"
    with pytest.raises(InvalidError) as error:
        world.submit("alice", 4, val_set_size=0.9, evaluate={"judge": {"model": judge}})
    assert error.value.problems[0][0] == "/evaluate/judge/model"
    return f"{error.value} {error.value.problems[0][1]}"


def test_a_model_that_cannot_judge_is_refused_at_the_submit(world: World, known: dict[str, BaseModel]) -> None:
    """Guards: without `_faults` the first two failed on a machine, and without `refuse_the_too_large` the third waited
    forever."""
    assert "The judge model org/odd needs its own code, which is not run for a judge" in refused(world, "org/odd")
    assert "has no chat template, so it was not taught to follow instructions" in refused(world, "plain/qwen2")
    known[JUDGE] = dataclasses.replace(known[JUDGE], parameters=10**13)
    world.machines.rooms = dataclasses.replace(world.machines.rooms, memory_bytes=2**34)
    words = refused(world, JUDGE)
    assert "The judge model does not fit on any machine." in words
    assert "the largest machine has 16.0; choose a smaller one" in words


def test_names_that_the_catalog_does_not_know(world: World, hub: HubEmulator, tmp_path: Path) -> None:
    """Models of the hub and of folders, as they are."""
    allowed = tmp_path / "allowed"
    folders = [allowed, tmp_path / "secret"]
    for folder in folders:
        make_nonsense(folder / "judge")
    make_nonsense(allowed / "plain", "")
    base = make_tiny_llama(allowed / "base")
    files = {path.name: path.read_bytes() for path in (allowed / "judge").iterdir()}
    without = {name: data for name, data in files.items() if name != "chat_template.jinja"}
    for name, data in (("org/judge", files), ("org/plain", without)):
        hub.add(Repo(id=name, files=data, parameters=100_000))
    hub.add(Repo(id="org/gated", files=files, gated=True))
    catalog = FolderAndHubCatalog([allowed], frozenset(), offline=False, endpoint=hub.endpoint, cache=tmp_path / "hub")
    world.ctx = dataclasses.replace(world.ctx, catalog=catalog)

    def submitted(judge: str) -> str:
        how: dict[str, Any] = {"base_model": str(base), "val_set_size": 0.9, "evaluate": {"judge": judge}}
        found = spec_of(world, world.submit("alice", 4, **how)).evaluate
        assert found is not None
        assert found.judge is not None
        return found.judge.model

    def words(judge: str) -> str:
        with pytest.raises(InvalidError) as error:
            submitted(judge)
        assert [pointer for pointer, _ in error.value.problems] == ["/evaluate/judge/model"]
        return str(error.value)

    assert submitted("org/judge") == f"org/judge@{hub.repos['model', 'org/judge'].commit}"
    assert submitted(str(allowed / "judge")) == str(allowed / "judge")
    nowhere = words("org/nowhere")
    assert nowhere.startswith("The judge model cannot be used: org/nowhere was not found on Hugging Face"), nowhere
    assert "Accept its terms" in words("org/gated") or "trainhop hub login" in words("org/gated")
    assert "not in an allowed folder" in words(str(tmp_path / "secret" / "judge"))
    for plain in ("org/plain", str(allowed / "plain")):
        assert "has no chat template" in words(plain)


def test_a_judge_in_a_folder_is_started_where_the_folder_is(world: World) -> None:
    """Guard: without the judge in `to_pending` it went to machines that have no such folder."""
    job = trained(world)
    made = started(world, job, judge=JudgeSpec(model="/models/qwen2"))
    assert to_pending(world.job(made)).from_folder
    assert not to_pending(world.job(job)).from_folder


@pytest.mark.usefixtures("known")
def test_its_word_is_a_judgement_like_that_of_an_endpoint(world: World) -> None:
    """A judge alone says "don't". Guards: with the orders exchanged the base was the adapter, and without
    `keep_judgement` there was no judgement."""
    job, made = evaluated(world, prefers(Arm.BASE))
    found = reported(world, made)
    assert (found.judgement.model, found.judgement.url) == (f"{JUDGE}@{COMMIT}", "")
    assert (found.judgement.state, found.judgement.prompt_version) == (JudgementState.DONE, judge_prompt.VERSION)
    assert (found.judgement.requests, found.answered, found.judgement.used_tokens) == (80, 80, 8_000)
    assert (found.conduct.pairs, found.conduct.failed, found.conduct.inconsistent.value) == (40, 0, 0.0)
    assert found.advice is Advice.DO_NOT
    assert found.result is not None
    assert (found.result.wins, found.result.losses) == (0, 20), "the first look decides"
    verdict = models.verdict_of(world.ctx, world.actors["alice"], job)
    assert verdict.verdict.answer is Recommendation.DO_NOT
    assert f"{JUDGE}@{COMMIT}: do not promote" in model_cards.card(world.ctx, world.actors["alice"], job)
    with world.ctx.uow() as tx:
        (event,) = [e for e in tx.events.after(0, job_id=made, limit=100) if e.kind == "evaluation.judged"]
    assert event.reason == f"by {JUDGE}@{COMMIT}"
    with pytest.raises(ConflictError, match="This judgement is done"):
        judgements.resume(world.ctx, world.actors["alice"], found.judgement.id)
    worker = world.workers[-1]
    worker.last()  # a repeated message adds none
    assert reported(world, made) == found


@pytest.mark.usefixtures("known")
def test_a_judge_alone_promotes_nothing(world: World) -> None:
    job, made = evaluated(world, prefers(Arm.ADAPTER))
    assert reported(world, made).advice is Advice.ASK_PEOPLE
    assert models.verdict_of(world.ctx, world.actors["alice"], job).verdict.answer is Recommendation.NOT_ENOUGH


def too_long_or_prose(number: int, first: Arm) -> str | None:
    if number < 3:
        return None
    if number < 5:
        return "I think that both have merits."
    return "Tie." if first is Arm.BASE else " tie\n"


@pytest.mark.usefixtures("known")
def test_what_is_no_verdict_is_counted_and_never_imputed(world: World) -> None:
    """Guard: with a tie for a failure, `pairs` were 40."""
    _, made = evaluated(world, too_long_or_prose)
    found = reported(world, made)
    assert (found.conduct.pairs, found.conduct.failed) == (35, 5)
    assert found.failures == {TOO_LONG: 6, NO_VERDICT: 4}
    assert any("gave no verdict on 5 pairs" in words for words in found.warnings)


@pytest.mark.usefixtures("known")
def test_a_judge_that_answers_nonsense_is_unusable(world: World) -> None:
    _, made = evaluated(world, always("\ufffd\ufffd nonsense"))
    found = reported(world, made)
    assert (found.conduct.pairs, found.conduct.failed, found.advice) == (0, 40, Advice.ASK_PEOPLE)
    _, made = evaluated(world, always("first"))
    found = reported(world, made)
    assert (found.conduct.is_usable, found.conduct.is_biased, found.advice) == (False, True, Advice.ASK_PEOPLE)


@pytest.mark.usefixtures("known")
def test_a_judge_that_is_the_base_model_or_of_its_family_is_named(world: World, known: dict[str, BaseModel]) -> None:
    """Guard: without `is_same_model` a model of no known family judged itself without a word."""
    job = trained(world)
    base = spec_of(world, job).base_model
    with world.ctx.uow() as tx:
        events = [e for e in tx.events.after(0, job_id=job, limit=100) if e.kind == "job.noted"]
    assert events == []
    known[base] = BaseModel(name=base, kind="llama")
    made = started(world, job, max_prompts=40, judge=JudgeSpec(model=base))
    with world.ctx.uow() as tx:
        said = [e.reason for e in tx.events.after(0, job_id=made, limit=100)]
    assert any("The judge model is the base model itself. Judges prefer their own answers." in (w or "") for w in said)
    worker = running(world)
    assert offered(worker, world.job(made).total_steps).committed
    finish(worker, judged_answers(40, prefers(Arm.ADAPTER)))
    found = reported(world, made)
    assert found.judgement.model == f"{base}@{SHA256[:12]}"
    assert found.family
    assert any("Judges prefer their own family." in words for words in found.warnings)


@pytest.mark.usefixtures("known")
def test_nothing_is_said_while_people_compare(world: World) -> None:
    """As for endpoints: `is_hidden` covers every judgement of an evaluation."""
    job, made = evaluated(world, prefers(Arm.BASE))
    comparisons.start(world.ctx, world.actors["alice"], made)
    found = reported(world, made)
    assert (found.is_hidden, found.advice, found.result, found.family) == (True, None, None, None)
    assert "judge" not in str(stored_evaluation(world, made).report)
    verdict = models.verdict_of(world.ctx, world.actors["alice"], job)
    assert verdict.judges is None


def test_a_file_without_the_judges_word_on_each_pair_is_refused() -> None:
    whole = judged_answers(4, always("tie"))
    found = answers_file.read(io.BytesIO(whole))
    assert [each.pair for each in found.judged] == [0, 1, 2, 3]
    lines = whole.splitlines(keepends=True)
    for broken in (lines[:-1], [*lines[:-2], lines[-1], lines[-2]]):
        with pytest.raises(AnswersError, match="does not have what the judge model says of each pair"):
            answers_file.read(io.BytesIO(b"".join(broken)))


def test_the_time_of_a_judge_is_planned() -> None:
    how: dict[str, Any] = {"base_model": "org/m", "datasets": [{"path": "d", "rows": 100}], "max_steps": 5}
    spec = JobSpec(**how, val_set_size=0.5)

    def seconds(asked: EvaluationSpec) -> float:
        found = evaluation_times.seconds(evaluation_times.spec_of(spec, asked), StepTime(), 2.0, gpu=True)
        assert found is not None
        return found

    assert seconds(EvaluationSpec(judge=JudgeSpec(model="org/j"))) > seconds(EvaluationSpec()) + 10
    assert evaluation_times.loads(evaluation_times.spec_of(spec, EvaluationSpec(judge=JudgeSpec(model="org/j")))) == 2


@pytest.mark.parametrize(
    ("given", "model"), [("org/m", "org/m"), ({"model": " org/m "}, "org/m"), ("", None), (None, None)]
)
def test_a_judge_is_written_as_its_name(given: Any, model: str | None) -> None:
    judge = EvaluationSpec.model_validate({"judge": given}).judge
    assert (judge.model if judge is not None else None) == model
