"""Checks of stored files: what a submit refuses and accepts, what is stored, and what a check that fails stops."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from orchestrator.domain.errors import InvalidError, NotFoundError, UnavailableError
from orchestrator.domain.storage import DataReport, Dataset
from orchestrator.services import data_checking, plans
from orchestrator.services.datasets import add_dataset, delete_dataset
from orchestrator.services.running_checks import RunningChecks
from tests.helpers.data_checks import data_checks
from tests.helpers.world import World
from worker.shared.data_check_list import CHECKS, Level
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.findings import Finding, Report
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.job_spec import JobSpec

KEY = "hf_" + "aBcDeFgH" * 4 + "Zz"
ROWS = [
    {"prompt": "Where is it?", "completion": "It is in the old town hall."},
    {"prompt": "And who knows?", "completion": f"Ask with the key {KEY} at the door."},
    {"prompt": "Where is it?", "completion": "It is in the old town hall."},
]


@pytest.fixture(autouse=True)
def checks(world: World) -> Iterator[RunningChecks]:
    """The world's server makes data checks."""
    with data_checks() as running:
        world.ctx = dataclasses.replace(world.ctx, checks=running)
        yield running


def bring(world: World, rows=ROWS, who: str = "alice") -> Dataset:
    file = world.folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = add_dataset(world.ctx, who, file, file.name)
    world.dataset = made.sha256
    return made


def stored(world: World, dataset: Dataset, *found: tuple[str, Level]) -> None:
    """A report as an earlier check has stored it."""
    findings = tuple(
        Finding(
            check=check,
            level=level,
            count=3,
            total=9,
            share=0.3,
            words=f"3 of 9 {check}",
            advice="Do it.",
            lines=(2, 5, 7),
        )
        for check, level in found
    )
    report = Report(version=VERSION, rows=9, checked=9, findings=findings).to_json()
    with world.ctx.uow() as tx:
        tx.datasets.add_report(
            DataReport(
                sha256=dataset.sha256,
                row_format=dataset.row_format,
                tokenizer="",
                version=VERSION,
                report=report,
                created_at=world.clock.now(),
            )
        )


def spec(world: World, **extra) -> JobSpec:
    data = {"base_model": "tiny", "datasets": [{"path": f"sha256:{world.dataset}"}], "max_steps": 4, **extra}
    return JobSpec.model_validate(data)


def test_a_stop_refuses_the_submit_and_says_what_to_do(world: World) -> None:
    """Guard: without `refuse_findings` in `prepare` the job was queued."""
    dataset = bring(world)
    stored(world, dataset, ("secrets", "stop"), ("template_tokens", "stop"), ("refusals", "warn"))
    with pytest.raises(InvalidError) as refused:
        world.submit("alice")
    assert str(refused.value).endswith("accept them with accept_findings: [secrets, template_tokens].")
    names = ("secrets", "template_tokens")
    assert refused.value.problems == tuple(
        (
            "/datasets/0/path",
            f"{name}: 3 of 9 {name} (lines 2, 5, 7). Do it. To train anyway: accept_findings: [{name}].",
        )
        for name in names
    )
    with pytest.raises(InvalidError, match=r"accept_findings: \[template_tokens\]"):
        world.submit("alice", accept_findings=["secrets"])


def test_accepted_findings_are_an_event_of_the_job(world: World) -> None:
    stored(world, bring(world), ("secrets", "stop"))
    job = world.submit("alice", accept_findings=["secrets"])
    with world.ctx.uow() as tx:
        (event,) = tx.events.of_kind(job, "job.findings_accepted")
    assert (event.data["checks"], event.reason, event.actor) == (["secrets"], "secrets: 3 of 9 secrets", "alice")
    assert world.job(job).spec["accept_findings"] == ["secrets"]


def test_warnings_stop_nothing_and_an_old_spec_is_the_same(world: World) -> None:
    stored(world, bring(world), ("refusals", "warn"))
    assert "accept_findings" not in world.job(world.submit("alice")).spec


@pytest.mark.parametrize(
    ("name", "words"),
    [("secret", "no check 'secret'; did you mean 'secrets'"), ("x" * 70, "; there are exact_duplicates, near_copies")],
)
def test_unknown_checks_are_refused_with_the_nearest_one(world: World, name: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(world, accept_findings=[name])


def test_a_file_is_checked_once_and_its_report_survives_a_restart(world: World, checks: RunningChecks) -> None:
    """A file of an earlier version has no report until then. Guards: without `add_report`, or with a key without the
    version, the process ran again."""
    dataset = bring(world)
    with pytest.raises(InvalidError, match="secrets"):
        world.submit("alice")
    checks.room.acquire()
    checks.room.acquire()  # no process may start
    report = data_checking.report_of(world.ctx, dataset, wait_s=0.0)
    assert report is not None
    assert {f.check: (f.level, f.lines) for f in report.findings} == {
        "exact_duplicates": ("stop", (3,)),
        "secrets": ("stop", (2,)),
    }
    assert KEY not in json.dumps(report.to_json())
    checks.room.release()
    checks.room.release()


def test_a_plan_shows_findings_and_does_not_refuse(world: World) -> None:
    stored(world, bring(world), ("secrets", "stop"), ("refusals", "warn"))
    plan = plans.plan(world.ctx, world.actors["alice"], spec(world, accept_findings=["secrets"]))
    assert [(f.check, f.level, f.accepted) for f in plan.findings] == [
        ("secrets", "stop", True),
        ("refusals", "warn", False),
    ]


def test_a_check_that_takes_long_keeps_nobody_waiting(world: World, checks: RunningChecks) -> None:
    """Guard: without the limit of the wait a submit took as long as the check of the largest file."""
    checks.submit_wait_s = 0.0
    checks.room.acquire()
    checks.room.acquire()
    dataset = bring(world)
    with pytest.raises(UnavailableError, match="still being checked") as late:
        world.submit("alice")
    assert late.value.retry_after_s
    with pytest.raises(UnavailableError, match="still being checked"):
        data_checking.stored_report(world.ctx, world.actors["alice"], dataset.sha256)
    checks.room.release()
    checks.room.release()


def test_few_requests_wait_at_a_time(world: World, checks: RunningChecks) -> None:
    """Guard: with all of them waiting, no thread of the server was left for anything else."""
    while checks.waiting.acquire(blocking=False):
        pass
    checks.room.acquire()
    checks.room.acquire()
    checks.submit_wait_s = 600.0
    bring(world)
    with pytest.raises(UnavailableError, match="still being checked"):
        world.submit("alice")
    checks.room.release()
    checks.room.release()


def test_a_check_that_fails_stops_no_job_and_says_so(world: World, checks: RunningChecks) -> None:
    """Guard: with the limit raised to the caller, a file that the checks cannot read could never be trained on."""
    checks.memory_bytes = 8 << 20
    dataset = bring(world)
    assert world.submit("alice")
    report = data_checking.report_of(world.ctx, dataset, wait_s=0.0)
    assert report is not None
    assert (report.checked, report.findings) == (0, ())
    assert {each.check for each in report.not_checked} == set(CHECKS)


def test_a_deleted_file_takes_its_report_along(world: World) -> None:
    """Guard: without the delete, masked samples of a file outlived it."""
    dataset = bring(world)
    stored(world, dataset, ("refusals", "warn"))
    delete_dataset(world.ctx, world.actors["alice"], dataset.sha256)
    stored(world, dataset, ("refusals", "warn"))  # of a check that ends late
    with world.ctx.uow() as tx:
        assert tx.datasets.get_report(dataset.sha256, dataset.row_format, "", VERSION) is None


def test_a_clean_copy_names_its_parent_and_belongs_to_its_maker(world: World) -> None:
    dataset = bring(world)
    made = data_checking.clean_copy(world.ctx, world.actors["alice"], dataset.sha256)
    assert (made.rows, made.parent, made.name) == (1, dataset.sha256, "rows-clean.jsonl")
    assert world.submit("alice", datasets=[{"path": f"sha256:{made.sha256}"}])
    with pytest.raises(NotFoundError):
        data_checking.clean_copy(world.ctx, world.actors["bob"], dataset.sha256)
    with pytest.raises(InvalidError, match="name no row"):
        data_checking.clean_copy(world.ctx, world.actors["alice"], made.sha256)


def test_what_a_tokenizer_says_depends_on_how_rows_are_written() -> None:
    """Seen failing without `encoding`: a clone of an old job got what the training template of a new one had said."""
    job = JobSpec.model_validate(
        {"base_model": "org/m", "datasets": [{"path": "x"}], "max_steps": 1, "encoding": 2, "numerics": 2}
    )
    newer = job.model_copy(update={"encoding": 3})
    assert data_checking.tokenizer_key(job) != data_checking.tokenizer_key(newer)


def test_findings_of_the_tokenizer_join_the_report() -> None:
    facts = TokenFacts(rows=10, open_rows=5, open_lines=(1,), trained=100, cut=3, special_rows=1, special_lines=(4,))
    away = data_checking._unread(Dataset(**_DATASET), "x")
    report = data_checking.with_tokens(away, facts)
    assert [(f.check, f.level) for f in report.findings] == [
        ("end_of_turn", "stop"),
        ("template_tokens", "stop"),
        ("cut_rows", "warn"),
    ]
    assert not {"end_of_turn", "cut_rows"} & {each.check for each in report.not_checked}


@pytest.mark.parametrize(("kind", "way", "cut"), [("text", "split", 0), ("text", None, 3), ("messages", "split", 3)])
def test_nothing_of_a_text_that_is_split_is_cut_off(kind: str, way: str | None, cut: int) -> None:
    """Guard: without it, a file of books was refused for what is beyond `sequence_len`, and now trained on."""
    given = {"base_model": "org/m", "datasets": [{"path": "x", "type": kind}], "max_steps": 1}
    job = JobSpec.model_validate(given | {"excess_length_strategy": way})
    facts = TokenFacts(rows=10, trained=4, cut=3, cut_lines=(2,))
    assert data_checking.uncut(facts, job, job.datasets[0]).cut == cut


_DATASET = {
    "sha256": "a" * 64,
    "size": 1,
    "file_format": "jsonl",
    "row_format": "text",
    "rows": 10,
    "name": "n",
    "member_id": "m",
    "created_at": 0.0,
    "key": "k",
}
