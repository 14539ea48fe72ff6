"""Benchmarks of an evaluation: items from the hub, what is refused, the leak, the report and the card."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from huggingface_hub import ModelCard

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.adapters.hub import Hub
from orchestrator.domain.errors import FindingsError, InvalidError, TrainhopError, UnavailableError
from orchestrator.domain.jobs import StepTime
from orchestrator.services import clones, datasets, evaluation_times, hub_tokens, jobs, model_cards, plans
from orchestrator.services.evaluation_report import report_of
from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.benchmark_repos import LONG, arc, arc_repo, as_parquet
from tests.helpers.data_checks import data_checks
from tests.helpers.world import World
from tests.services.test_evaluations import answers, running, started, trained
from tests.services.test_models import trained as trained_to_the_end
from worker.shared import answers_file
from worker.shared.answers_file import AskedBenchmark
from worker.shared.benchmark_files import read_items
from worker.shared.benchmark_list import BENCHMARKS
from worker.shared.evaluation_spec import BenchmarkSpec, EvaluationSpec
from worker.shared.evaluation_units import Arm, Measure
from worker.shared.job_spec import JobSpec
from worker.shared.spec_errors import explain

TOKEN = "hf_anns_token"


@pytest.fixture
def repo(world: World, hub: HubEmulator, tmp_path: Path) -> Repo:
    """The hub of this world has the benchmark."""
    hub.accounts[TOKEN] = "ann"
    catalog = FolderAndHubCatalog([], frozenset(), offline=False, endpoint=hub.endpoint, cache=tmp_path / "hub")
    catalog.model = world.ctx.catalog.model  # pyright: ignore[reportAttributeAccessIssue] - its models are not on a hub
    world.ctx = dataclasses.replace(world.ctx, catalog=catalog)
    return hub.add(arc_repo())


def asked(*names: str) -> dict[str, Any]:
    return {"benchmarks": tuple(BenchmarkSpec.model_validate(name) for name in names)}


def items_of(world: World, sha256: str | None, rows: int) -> list[dict[str, Any]]:
    """The items as a worker reads them."""
    with world.ctx.uow() as tx:
        dataset = tx.datasets.get(sha256 or "")
    assert dataset is not None
    with datasets.copied(world.ctx, dataset) as path:
        return read_items(path, "arc_easy", rows)


def test_items_come_from_the_hub_and_go_to_the_machine(world: World, repo: Repo) -> None:
    """Guard: without the items in `files_by_pointer` the machine did not get them."""
    job = trained(world)
    made = started(world, job, **asked("arc_easy"))
    assert world.job(made).total_steps == 2 * 6 + 2 * 4 + 2 * 2 + 2 * 4 + 2 * 2
    worker = running(world)
    assert worker.assignment is not None
    settings = worker.assignment.spec.evaluation
    assert settings is not None
    (pinned,) = settings.benchmarks
    assert (pinned.revision, pinned.rows) == (repo.commit, 12)
    assert pinned.task_sha256 == BENCHMARKS["arc_easy"].task_sha256
    assert worker.assignment.datasets[-1].sha256 == pinned.sha256
    (first, *_) = items_of(world, pinned.sha256, 12)
    assert first["question"] == arc(0)["question"]
    assert (first["choices"][first["gold"]], first["row"]) == ("Neptune 0", 0)


def test_a_clone_keeps_the_items_of_its_commit(world: World, hub: HubEmulator, repo: Repo) -> None:
    """Guard: without the commit in the pinned file, a job that was submitted again got the items of today."""
    job = world.submit("alice", 4, val_set_size=0.9, evaluate={"benchmarks": ["arc_easy"]})
    settings = JobSpec.model_validate(world.job(job).spec).evaluate
    assert settings is not None
    hub.add(arc_repo(40))
    clone = clones.clone(world.ctx, world.actors["alice"], job, {})
    cloned = JobSpec.model_validate(clone.spec).evaluate
    assert cloned is not None
    assert cloned.benchmarks == settings.benchmarks
    again = world.submit("alice", 4, val_set_size=0.9, evaluate={"benchmarks": ["arc_easy"]})
    newer = JobSpec.model_validate(world.job(again).spec).evaluate
    assert newer is not None
    assert newer.benchmarks[0].rows == 40
    assert newer.benchmarks[0].sha256 != settings.benchmarks[0].sha256


def test_a_large_benchmark_is_a_sample_of_the_whole_file(world: World, hub: HubEmulator, repo: Repo) -> None:
    """Guard: with the first rows, items would be of one source where the file is sorted."""
    hub.add(arc_repo(700))
    job = trained(world)
    started(world, job, **asked("arc_easy"))
    worker = running(world)
    assert worker.assignment is not None
    assert worker.assignment.spec.evaluation is not None
    (pinned,) = worker.assignment.spec.evaluation.benchmarks
    rows = [item["row"] for item in items_of(world, pinned.sha256, 300)]
    assert (len(set(rows)), rows) == (300, sorted(rows))
    assert max(rows) > 650
    assert rows[:5] == [3, 4, 6, 9, 11]


def refused(world: World, job: str, name: str = "arc_easy") -> TrainhopError:
    with pytest.raises((InvalidError, UnavailableError)) as error:
        started(world, job, **asked(name))
    return error.value


def test_what_the_hub_does_not_give_is_said_in_one_sentence(world: World, hub: HubEmulator, repo: Repo) -> None:
    job = trained(world)
    del hub.repos["dataset", "allenai/ai2_arc"]
    assert "arc_easy: allenai/ai2_arc was not found on Hugging Face" in str(refused(world, job))
    assert "Otherwise, leave the benchmark out." in str(refused(world, job))
    hub.add(arc_repo(gated=True, readers={"ann"}))
    gated = refused(world, job)
    assert "arc_easy: allenai/ai2_arc is gated. Accept its terms at https://huggingface.co/datasets/allenai" in str(
        gated
    )
    assert isinstance(gated, InvalidError)
    assert gated.problems[0][0] == "/benchmarks/0"
    hub_tokens.set_token(world.ctx, "alice", TOKEN)
    started(world, job, **asked("arc_easy"))
    files = {"ARC-Easy/test-00000-of-00001.parquet": as_parquet([{"question": "What?", "answer": "no"}])}
    hub.add(Repo(id="allenai/ai2_arc", kind="dataset", files=files))
    assert "line 1: is not an item of arc_easy" in str(refused(world, job))
    hub.add(Repo(id="allenai/ai2_arc", kind="dataset", files={"other.parquet": b"PAR1"}))
    assert "has 0 files like ARC-Easy/test-*.parquet" in str(refused(world, job))
    hub.rules.add("GET /api/datasets/allenai/ai2_arc", status=503)
    busy = refused(world, job)
    assert isinstance(busy, UnavailableError)
    assert "arc_easy: Hugging Face is busy (HTTP 503)" in str(busy)
    hub.rules.clear()
    assert f"arc_easy: allenai/ai2_arc@{'0' * 40} was not found" in str(refused(world, job, f"arc_easy@{'0' * 40}"))
    offline = FolderAndHubCatalog([], frozenset(), offline=True)
    world.ctx = dataclasses.replace(world.ctx, catalog=offline)
    assert "set to stay offline. To continue, leave the benchmark out" in str(refused(world, job))


def test_a_file_beyond_the_maximum_is_not_downloaded(hub: HubEmulator, tmp_path: Path) -> None:
    hub.add(arc_repo())
    small = Hub(is_offline=False, endpoint=hub.endpoint, cache=tmp_path, most_bytes=1 << 10)
    with pytest.raises(InvalidError, match="has more than 0 MiB"):
        small.benchmark("allenai/ai2_arc", "ARC-Easy/test-*.parquet", None)
    assert not [seen for seen in hub.seen if seen.request.startswith("GET /signed")]


def test_an_estimate_counts_the_items_and_the_written_answers() -> None:
    """Guard: without their own case, a plan with benchmarks failed."""
    plain = {"base_model": "tiny", "datasets": [{"path": "x", "rows": 100}], "max_steps": 1, "val_set_size": 0.3}

    def seconds(*benchmarks: str) -> float:
        known = [{"name": name, "sha256": "3" * 64, "rows": 200, "task_sha256": "4" * 64} for name in benchmarks]
        spec = JobSpec.model_validate({**plain, "evaluation": {"benchmarks": known}})
        found = evaluation_times.seconds(spec, StepTime(), 1.0, gpu=True)
        assert found is not None
        return found

    chosen = seconds("arc_easy") - seconds()
    assert 20 < chosen < seconds("gsm8k") - seconds()
    assert seconds("gsm8k", "arc_easy") == pytest.approx(seconds("arc_easy", "gsm8k"))


def test_an_unknown_benchmark_is_refused_with_the_list() -> None:
    def words(value: Any) -> str:
        from pydantic import ValidationError

        data = {"base_model": "tiny", "datasets": [{"path": "x"}], "max_steps": 1, "evaluate": {"benchmarks": value}}
        with pytest.raises(ValidationError) as error:
            JobSpec.model_validate(data)
        return " ".join(f"{pointer} {sentence}" for pointer, sentence in explain(error.value))

    said = words(["arc_hard"])
    assert "/evaluate/benchmarks/0" in said
    assert "there is no benchmark 'arc_hard'; there are arc_easy, gsm8k, hellaswag, truthfulqa_mc1" in said
    assert "must name each benchmark once" in words(["gsm8k", "gsm8k"])
    assert "/evaluate/benchmarks" in words(["arc_easy@main"])


@pytest.fixture
def checks(world: World) -> Iterator[None]:
    with data_checks() as running:
        world.ctx = dataclasses.replace(world.ctx, checks=running)
        yield


def rows_with(world: World, *questions: str) -> None:
    """A dataset of the world whose rows hold these questions, among others."""
    path = world.folder / "rows.jsonl"
    plain = [{"prompt": f"Tell me of the town number {n}.", "completion": f"It has {n} gates."} for n in range(30)]
    leaked = [{"prompt": f"Please answer: {question}", "completion": "Neptune"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*plain, *leaked)))
    world.dataset = datasets.add_dataset(world.ctx, "alice", path, path.name).sha256


@pytest.mark.usefixtures("repo", "checks")
def test_rows_that_hold_an_item_stop_the_job_that_evaluates_it(world: World) -> None:
    """Guard: without `with_leaks` the job was queued, and its score was that of a model that knows the answers."""
    rows_with(world, arc(3)["question"], arc(7)["question"])
    evaluated: dict[str, Any] = {"evaluate": {"benchmarks": ["arc_easy"]}, "val_set_size": 0.1}
    world.submit("alice", 4, val_set_size=0.1)
    with pytest.raises(FindingsError) as stopped:
        world.submit("alice", 4, **evaluated)
    assert "benchmark_leak: 2 of 32 rows (6.2 %) hold an item of the benchmark arc_easy (lines 31, 32)" in str(
        stopped.value.problems
    )
    data = {"base_model": "tiny", "datasets": [{"path": f"sha256:{world.dataset}"}], "max_steps": 4} | evaluated
    plan = plans.plan(world.ctx, world.actors["alice"], JobSpec.model_validate(data))
    (finding,) = [each for each in plan.findings if each.check == "benchmark_leak"]
    assert (finding.level, finding.lines, finding.accepted) == ("stop", (31, 32), False)
    assert world.submit("alice", 4, **evaluated, accept_findings=["benchmark_leak"])


@pytest.mark.usefixtures("checks")
def test_rows_that_hold_a_task_stop_the_job_that_evaluates_it(world: World) -> None:
    path = world.folder / "tasks.jsonl"
    task = {"prompt": f"{LONG} planet?", "check": {"type": "exact", "answer": "Neptune"}}
    path.write_text(json.dumps(task) + "\n")
    sha256 = datasets.bring(world.ctx, "alice", path, path.name).dataset.sha256
    rows_with(world, f"{LONG} planet?")
    tasks = {"tasks": {"path": f"sha256:{sha256}"}}
    with pytest.raises(FindingsError) as stopped:
        world.submit("alice", 4, evaluate=tasks, val_set_size=0.1)
    assert "hold an item of the tasks (line 31)" in str(stopped.value.problems)
    rows_with(world)
    assert world.submit("alice", 4, evaluate=tasks, val_set_size=0.1)


def answered(base: list[bool], adapter: list[bool]) -> bytes:
    """The answers of an evaluation with a benchmark."""
    lines = b"".join(
        answers_file.json_line(
            {"measure": Measure.BENCHMARKS, "arm": arm, "number": n, "correct": right, "answer": "", "tokens": 9}
        )
        for n, pair in enumerate(zip(base, adapter, strict=True))
        for arm, right in zip(Arm, pair, strict=True)
    )
    numbers = range(len(base))
    head = AskedBenchmark(
        name="arc_easy", first=0, items=len(base) + 1, asked=numbers, harness="lm-eval 0.4.13", chat=True
    )
    return answers(40, more=lines, tasks={"benchmarks": [head]})


def test_the_report_compares_the_same_items(world: World) -> None:
    """A benchmark is neither a veto nor a part of the verdict."""
    found = answers_file.read(io.BytesIO(answered([True] * 60 + [False] * 40, [True] * 35 + [False] * 65)))
    report = report_of(found)
    (each,) = report["benchmarks"]
    assert (each["title"], each["items"], each["unasked"], each["metric"]) == ("ARC-Easy", 100, 1, "acc_norm")
    scores = each["scores"]
    assert scores["base"] == {
        "value": 0.6,
        "low": pytest.approx(0.502, abs=1e-3),
        "high": pytest.approx(0.691, abs=1e-3),
    }
    assert (scores["only_base"], scores["only_adapter"]) == (25, 0)
    assert scores["difference"]["value"] == pytest.approx(-0.25)
    assert scores["p"] < 1e-6
    assert report["vetoes"] == []
    assert any(
        "The adapter is worse than the base model in ARC-Easy: -25 points" in said for said in report["warnings"]
    )
    assert "Left out, because they are too long: 1 item of ARC-Easy." in report["warnings"]


def test_a_file_without_the_items_that_it_names_is_refused() -> None:
    whole = answered([True] * 3, [False] * 3)
    with pytest.raises(answers_file.AnswersError, match="does not have the items"):
        answers_file.read(io.BytesIO(whole[: whole.rindex(b"\n", 0, -1) + 1]))


@pytest.mark.usefixtures("repo", "checks")
def test_the_card_has_a_model_index_without_scores_that_were_trained_on(world: World, repo: Repo) -> None:
    """Guard: without `_leaked` the score of an adapter that had seen the items was published."""
    rows_with(world)
    clean = trained_to_the_end(world, val_set_size=0.1)
    card = with_evaluation(world, clean)
    parsed = ModelCard(card)
    (result,) = cast("Any", parsed.data).eval_results
    assert (result.task_type, result.dataset_type) == ("multiple-choice", "allenai/ai2_arc")
    assert (result.dataset_config, result.dataset_split) == ("ARC-Easy", "test")
    assert result.dataset_revision == repo.commit
    assert (result.metric_type, result.metric_value) == ("acc_norm", 0.7)
    assert "| ARC-Easy | acc_norm of 10 items: base 60.0 % (" in card
    index = yaml.safe_load(card.split("---")[1])["model-index"]
    assert index[0]["results"][0]["dataset"]["args"]["items"] == 10
    rows_with(world, arc(3)["question"])
    trained_on = with_evaluation(world, trained_to_the_end(world, val_set_size=0.1))
    assert "model-index" not in trained_on
    assert "items of it are in the training rows, so this score says nothing" in trained_on


def with_evaluation(world: World, job: str) -> str:
    """The card of a job after an evaluation with a benchmark."""
    made = started(world, job, **asked("arc_easy"))
    settings = world.job(made).spec["evaluation"]
    with world.ctx.uow() as tx:
        evaluation = tx.evaluations.get(made)
    assert evaluation is not None
    assert EvaluationSpec.model_validate(settings).benchmarks
    report = report_of(answers_file.read(io.BytesIO(answered([True] * 6 + [False] * 4, [True] * 7 + [False] * 3))))
    evaluation.report, evaluation.answers_sha256, evaluation.finished_at = report, "b" * 64, world.clock.now()
    with world.ctx.uow() as tx:
        tx.evaluations.finish(evaluation, [])
    jobs.cancel(world.ctx, world.actors["alice"], made)  # no machine is to do it
    return model_cards.card(world.ctx, world.actors["alice"], job)
