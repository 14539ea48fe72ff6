"""The data gate for rows that are held out of training: prompts, tasks, validation files, and the split of a job."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.domain.errors import FindingsError, UnavailableError
from orchestrator.domain.storage import Dataset
from orchestrator.services import data_gate, evaluations, held_out_checking, model_cards, plans
from orchestrator.services.datasets import add_dataset
from orchestrator.services.running_checks import RunningChecks
from tests.helpers.data_checks import data_checks
from tests.helpers.world import World
from tests.services.test_evaluations import trained
from tests.services.test_models import evaluated
from worker.shared import limited_call
from worker.shared.dataset_spec import RowFormat
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.limited_call import LimitError

TOPICS = ("harbour", "library", "museum", "station", "garden", "theatre", "bakery", "stadium", "chapel", "market")
ROWS = [
    {"prompt": f"Where does the {topic} keep {n} old keys?", "completion": f"Behind the {topic} door, on hook {n}."}
    for n, topic in enumerate(TOPICS)
]


def here(function: str, request: dict[str, Any], **_: int) -> Any:
    """Calls a check in this process, with requests and answers as a process of its own would have them."""
    module, name = function.split(":")
    answer = getattr(importlib.import_module(module), name)(json.loads(json.dumps(request)))
    return json.loads(json.dumps(answer))


@pytest.fixture(autouse=True)
def checks(world1: World) -> Iterator[RunningChecks]:
    """The world's server makes data checks."""
    with data_checks(call=here, plan_wait_s=60.0) as running:
        world1.ctx = dataclasses.replace(world1.ctx, checks=running)
        yield running


def bring(world1: World, rows: list[dict[str, Any]], name: str, row_format: RowFormat = RowFormat.AUTO) -> Dataset:
    file = world1.folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return add_dataset(world1.ctx, "alice", file, file.name, row_format)


@pytest.fixture
def prompts(world1: World) -> dict[str, str]:
    """Two prompts, the second of which is trained on."""
    world1.dataset = bring(world1, ROWS, "rows").sha256
    made = bring(world1, [{"prompt": "Who knows the baker's cousin?", "completion": "-"}, ROWS[3]], "prompts")
    return {"path": f"sha256:{made.sha256}"}


def spec(world1: World, **extra: Any) -> JobSpec:
    data = {"base_model": "tiny", "datasets": [{"path": f"sha256:{world1.dataset}"}], "max_steps": 4, **extra}
    return JobSpec.model_validate(data)


LEAK = "leak: 1 of 2 prompts (50 %) have the same text or the same prompt as a training row (line 2). "


def test_leaked_prompts_refuse_the_submit_unless_they_are_accepted(world1: World, prompts: dict[str, str]) -> None:
    """Guard: without `held_out_reports` in `file_reports` the job was queued."""
    with pytest.raises(FindingsError) as refused:
        world1.submit("alice", evaluate={"prompts": prompts})
    assert str(refused.value) == (
        "The model is trained on what it would be evaluated with (leak). Remove these rows, or accept them with "
        "accept_findings: [leak]."
    )
    ((pointer, words),) = refused.value.problems
    assert pointer == "/evaluate/prompts/path"
    assert words.startswith(LEAK)
    assert words.endswith("To evaluate anyway: accept_findings: [leak].")
    job = world1.submit("alice", evaluate={"prompts": prompts}, accept_findings=["leak"])
    with world1.ctx.uow() as tx:
        (event,) = tx.events.of_kind(job, "job.findings_accepted")
    assert (event.data["checks"], event.reason) == (["leak"], LEAK.partition(" (line")[0])


def test_leaked_tasks_refuse_the_submit(world1: World, prompts: dict[str, str]) -> None:
    check = {"type": "exact", "answer": "on hook 3"}
    made = bring(world1, [{"prompt": ROWS[3]["prompt"], "check": check}], "tasks", RowFormat.TASK)
    with pytest.raises(FindingsError) as refused:
        world1.submit("alice", val_set_size=0.2, evaluate={"tasks": {"path": f"sha256:{made.sha256}"}})
    assert [pointer for pointer, _ in refused.value.problems] == ["/evaluate/tasks/path"]


def test_a_plan_shows_leaks_with_their_place_and_the_mended_split(world1: World, prompts: dict[str, str]) -> None:
    world1.dataset = bring(world1, [*ROWS, *ROWS[:5]], "twice").sha256
    asked = {"evaluate": {"prompts": prompts}, "val_set_size": 0.3, "accept_findings": ["leak", "exact_duplicates"]}
    plan = plans.plan(world1.ctx, world1.actors["alice"], spec(world1, **asked))
    shown = [(f.check, f.level, f.dataset, f.pointer, f.accepted) for f in plan.findings if f.dataset is None]
    assert shown == [
        ("split", "list", None, "/val_set_size", False),
        ("leak", "stop", None, "/evaluate/prompts/path", True),
        ("split", "warn", None, "/evaluate/prompts/path", False),
    ]
    split, leak, _ = (f for f in plan.findings if f.dataset is None)
    assert split.words.startswith("10 of 15 rows are copies of each other, in 5 groups")
    assert split.words.endswith("and 0 have one now")
    assert (leak.lines, leak.other_lines, leak.samples[0].line) == ((2,), (4,), 2)
    assert plan.unchecked == ()


def test_a_comparison_is_made_once_and_kept(world1: World, prompts: dict[str, str], checks: RunningChecks) -> None:
    """By a process of its own. Guard: without `add_report` it ran again."""
    checks.call = limited_call.call
    with pytest.raises(FindingsError):
        world1.submit("alice", evaluate={"prompts": prompts})
    checks.room.acquire()
    checks.room.acquire()  # no process may start
    with pytest.raises(FindingsError):
        world1.submit("alice", evaluate={"prompts": prompts})
    other = held_out_checking.HeldOut(pointer="", names="prompts", trained=(("a", "text"),), held_out=("b", "text"))
    keys = {other.key, dataclasses.replace(other, names="tasks").key, dataclasses.replace(other, seed=1).key}
    assert len(keys | {dataclasses.replace(other, trained=(("a", "alpaca"),)).key}) == 4
    checks.room.release()
    checks.room.release()


def test_a_late_comparison_refuses_for_now_and_a_late_split_does_not(
    world1: World, prompts: dict[str, str], checks: RunningChecks
) -> None:
    """Guards: without `may_stop`, or without `only_stops`, a submit waited for a report that stops nothing; with a wait
    that has no end, a server had no thread left."""
    assert world1.submit("alice")  # the file itself is checked
    checks.submit_wait_s = 0.0
    checks.room.acquire()
    checks.room.acquire()
    with pytest.raises(UnavailableError, match="the prompts: the file is still being checked"):
        world1.submit("alice", evaluate={"prompts": prompts})
    checks.submit_wait_s = 3_600.0
    assert world1.submit("alice", val_set_size=0.2)
    checks.room.release()
    checks.room.release()


def test_few_comparisons_begin_at_a_time(world1: World, prompts: dict[str, str], checks: RunningChecks) -> None:
    """Guard: without `comparing`, each seed of a job with a split had a waiting thread of its own."""
    while checks.comparing.acquire(blocking=False):
        pass
    (asked,) = held_out_checking.held_out_of(_pinned(world1, val_set_size=0.3))
    assert held_out_checking.compared(world1.ctx, asked, wait_s=5.0) is None
    checks.comparing.release()
    assert held_out_checking.compared(world1.ctx, asked, wait_s=60.0) is not None


def _pinned(world1: World, **extra: Any) -> JobSpec:
    return JobSpec.model_validate(world1.job(world1.submit("alice", **extra)).spec)


def test_a_comparison_that_fails_stops_no_job_and_says_so(
    world1: World, prompts: dict[str, str], checks: RunningChecks
) -> None:
    def beyond(*_: object, **__: object) -> None:
        raise LimitError("it needs more than 8 MiB of memory")

    checks.call = beyond
    job = world1.submit("alice", evaluate={"prompts": prompts})
    (asked,) = held_out_checking.held_out_of(JobSpec.model_validate(world1.job(job).spec))
    report = held_out_checking.compared(world1.ctx, asked, wait_s=0.0)
    assert report is not None
    assert [each.check for each in report.not_checked] == ["leak", "split", "shift"]
    assert {each.reason for each in report.not_checked} == {"it needs more than 8 MiB of memory"}


def test_an_evaluation_that_is_started_later_is_refused_too(world1: World, prompts: dict[str, str]) -> None:
    """Guard: without `refuse_leaks` the adapter was compared by rows that it was trained on. The card says what was
    accepted."""
    job, alice = trained(world1), world1.actors["alice"]
    asked = EvaluationSpec.model_validate({"prompts": prompts})
    with pytest.raises(FindingsError) as refused:
        evaluations.evaluate(world1.ctx, alice, job, asked)
    assert [pointer for pointer, _ in refused.value.problems] == ["/prompts/path"]
    made = evaluations.evaluate(world1.ctx, alice, job, asked, accept_findings=["leak"])
    with world1.ctx.uow() as tx:
        (event,) = tx.events.of_kind(made.job.id, "job.findings_accepted")
        stored = tx.evaluations.get(made.job.id)
    assert event.data["checks"] == ["leak"]
    assert stored is not None
    evaluated(world1, job, settings=stored.settings)
    card = model_cards.card(world1.ctx, alice, job)
    assert f"| prompts and training rows | {LEAK.partition(' (line')[0]}; split: 1 of 10 training rows" in card
    found = model_cards.provenance(world1.ctx, alice, job)["held_out"]
    assert [(each["rows"], [one["check"] for one in each["checks"]]) for each in found] == [
        ("validation rows", []),
        ("prompts", ["leak", "split"]),
    ]


def test_accepted_leaks_of_a_job_are_accepted_in_its_evaluations(world1: World, prompts: dict[str, str]) -> None:
    job = trained(world1, accept_findings=["leak"])
    asked = EvaluationSpec.model_validate({"prompts": prompts})
    assert evaluations.evaluate(world1.ctx, world1.actors["alice"], job, asked).is_new


def test_no_check_no_gate(world1: World, prompts: dict[str, str]) -> None:
    world1.ctx = dataclasses.replace(world1.ctx, checks=None)
    assert data_gate.refuse_findings(world1.ctx, spec(world1)) == ()
    assert world1.submit("alice", evaluate={"prompts": prompts})
