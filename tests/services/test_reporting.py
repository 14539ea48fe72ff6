"""Curves at experiment trackers: one run over all sessions, and each step once, whatever is cut or down."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from orchestrator.domain.accounts import Role
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.tracking import CurveRow, last_complete, points
from orchestrator.services import jobs, tracker_logins
from orchestrator.services.copied_folder import leave_to_the_original
from orchestrator.services.members import remove_member
from orchestrator.services.reconcile import reconcile
from orchestrator.services.reporting import GIVE_UP_S, RETRY_S, ReportingContext, config_of, report_due
from tests.helpers.trackers import Journey, KilledError, PaperTrackers
from tests.helpers.world import World
from tests.services.test_member_removal import admin
from worker.shared.job_spec import JobSpec
from worker.shared.messages import MetricRow, Phase, Report
from worker.shared.report_to import TRACKERS


def all_steps(journey: Journey, tracker: str = "wandb") -> None:
    assert journey.steps(tracker) == list(range(1, 13))
    assert journey.run(tracker).told == "succeeded"
    assert journey.trackers.runs[tracker, journey.job].states[-1] == "succeeded"


def test_three_sessions_are_one_run_with_each_step_once(world: World) -> None:
    """Guards: with all steps and not those of checkpoints, 5 and 6 were written twice. In a transaction, it failed."""
    journey = Journey.of(world)
    first = journey.begin()
    journey.train(first, 4)
    journey.train(first, 6, saves=False)
    assert journey.look().written_step == 4
    journey.lose(first)
    journey.look()
    assert journey.steps() == [1, 2, 3, 4]
    second = journey.begin()
    assert second.step == 4
    journey.train(second, 8)
    second.release()
    reconcile(world.ctx)
    assert journey.look().written_step == 8
    third = journey.begin()
    journey.train(third, 12)
    journey.finish(third)
    assert journey.look().told == ""
    assert journey.look().told == "succeeded"
    all_steps(journey)
    sessions = [point.values["session"] for point in journey.trackers.runs["wandb", journey.job].points]
    assert sessions == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert "Session 3: sim (sim), from step 8 to 12." in journey.trackers.runs["wandb", journey.job].request.notes
    with world.ctx.uow() as tx:
        assert tx.tracking.due(world.clock.now() + 1e6, 10) == []


@pytest.mark.parametrize("fault", ["down", "half", "late", "killed"])
def test_no_step_is_written_twice_after_a_fault(world1: World, fault: str) -> None:
    """Guard: written from `written_step` and not from what the tracker has, steps came twice after three of these."""
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 4)
    journey.trackers.faults = ["", fault]
    journey.train(worker, 8)
    journey.look()
    journey.train(worker, 12)
    journey.finish(worker)
    if fault == "killed":
        with pytest.raises(KilledError):
            journey.look()
    else:
        failed = journey.look()
        assert (failed.attempts, bool(failed.reason)) == (1, True)
    assert journey.look(times=2).reason == ""
    all_steps(journey)


def test_a_server_that_dies_at_any_transaction_repeats_nothing(world1: World) -> None:
    """Guard: as above. The server dies before and after each of its transactions in turn."""
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 12)
    journey.finish(worker)
    died = 0
    for place in range(20):
        left = [place]

        def between(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError

        world1.clock.tick(10.0)
        world1.watch.between = between
        try:
            # What counts here are the transactions of one look, so the clock was moved before.
            report_one(journey)
        except KilledError:
            died += 1
        finally:
            world1.watch.between = lambda: None
    assert died > 5
    journey.look(times=2)
    all_steps(journey)


def report_one(journey: Journey) -> None:
    from orchestrator.services.reporting import work

    work(ReportingContext(ctx=journey.world.ctx, trackers=journey.trackers), journey.job, "wandb")


def test_training_never_waits_for_a_tracker_that_is_down(world1: World) -> None:
    journey = Journey.of(world1, report_to=["wandb", "mlflow"])
    journey.trackers.faults = ["down"] * (len(RETRY_S) + 1)
    worker = journey.begin()
    journey.train(worker, 4)
    waits = []
    for _ in range(len(RETRY_S) + 1):
        run = journey.look()
        waits.append(run.not_before - world1.clock.now())
    assert waits == [*RETRY_S, RETRY_S[-1]]
    assert journey.run().reason == "It does not answer."
    assert journey.look("mlflow").written_step == 3
    journey.train(worker, 12)
    journey.finish(worker)
    assert world1.job(journey.job).state is JobState.SUCCEEDED
    journey.look(times=2)
    all_steps(journey)


def test_the_server_gives_up_a_week_after_the_job(world1: World) -> None:
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 12)
    journey.finish(worker)
    journey.trackers.problem = "Its library is not installed."
    assert journey.look().gave_up_at is None
    world1.clock.tick(GIVE_UP_S + 1)
    assert journey.look().gave_up_at == world1.clock.now()
    journey.trackers.problem = ""
    tracker_logins.set_login(world1.ctx, world1.actors["alice"], "wandb", key="k", url="", project="")
    journey.look(times=2)  # a new login is a new try
    all_steps(journey)


def test_a_damaged_head_repeats_no_step(world1: World) -> None:
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 4)
    journey.train(worker, 8)
    journey.train(worker, 9, saves=False)
    assert journey.look().written_step == 8
    with world1.ctx.uow() as tx:
        job = tx.jobs.get(journey.job)
        assert job is not None
        job.head_step = 4  # as after a fall back to the parent
        tx.jobs.save(job)
    assert journey.look().written_step == 8
    assert journey.steps() == list(range(1, 9))


def test_a_retried_job_goes_on_in_its_run(world1: World) -> None:
    """Guard: without `reopen` the steps after the retry were not written."""
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 4)
    worker.fail(permanent=True)
    reconcile(world1.ctx)
    assert journey.look(times=2).told == "failed"
    jobs.retry(world1.ctx, world1.actors["alice"], journey.job)
    again = journey.begin()
    journey.train(again, 12)
    journey.finish(again)
    journey.look(times=2)
    all_steps(journey)


def test_late_values_of_a_step_are_waited_for(world1: World) -> None:
    """Guard: without `newest` in `last_complete` step 4 was written without its validation loss."""
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 4)
    assert journey.look().written_step == 3
    said = {**worker._said(), "step": 4, "phase": Phase.EVAL}
    worker.send(Report(**said, metrics=(MetricRow(step=4, values={"eval_loss": 0.5}),)))
    worker.step = 5
    worker.report()
    assert journey.look().written_step == 4
    assert journey.trackers.runs["wandb", journey.job].points[-1].values["eval_loss"] == 0.5


@pytest.mark.parametrize(
    ("trained", "open_from", "newest", "last"),
    [
        ([1, 2, 3, 4], None, 4, 4),
        ([1, 2, 4], None, 4, 4),  # nobody can fill the gap any more
        ([1, 2, 3, 4], 0, 6, 4),
        ([1, 2, 3, 4], 0, 4, 3),
        ([1, 2, 4], 0, 6, 2),  # a lost message may still come from the machine's own record
        ([1, 2, 4], 4, 6, 4),
        ([1, 3, 4], 2, 6, 4),  # step 2 was of an earlier session, whose messages are all there
        ([], 4, 4, 3),
    ],
)
def test_what_is_complete(trained: list[int], open_from: int | None, newest: int, last: int) -> None:
    assert last_complete(trained, after=0, head_step=4, open_from=open_from, newest=newest) == last


def test_points_have_what_a_chart_can_show() -> None:
    def row(name: str, value: float, fence: int = 1) -> CurveRow:
        return CurveRow(step=3, name=name, value=value, fence=fence, at=7.0)

    (point,) = points([row("loss", 1.0, 2), row("grad_norm", math.inf), row("batch_crc32", 9.0)])
    assert (point.step, point.at, point.values) == (3, 7.0, {"loss": 1.0, "session": 2.0})


def test_nothing_of_a_persons_data_is_sent(world1: World) -> None:
    """Guard: without a name in `PRIVATE`, its text was in the settings."""
    secret = "the-secret-word"
    journey = Journey.of(
        world1,
        sample_prompts=[secret],
        name=f"name {secret}",
        placement={"accounts": [secret]},
    )
    sent = config_of(world1.job(journey.job))
    assert secret not in json.dumps(sent)
    assert (sent["learning_rate"], sent["base_model"], sent["rows"]) == (2e-4, "tiny", 40)
    local = replace(world1.job(journey.job), spec={"base_model": "/home/ann/models/tiny", "datasets": []})
    assert config_of(local)["base_model"] == "tiny"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("none", ()),
        ([], ()),
        (["none"], ()),
        ("wandb", ("wandb",)),
        (["mlflow", "wandb", "mlflow"], ("wandb", "mlflow")),
        (list(TRACKERS), TRACKERS),
    ],
)
def test_names_as_in_transformers(given: object, kept: tuple[str, ...]) -> None:
    spec = spec_of(given)
    assert spec.report_to == kept
    assert ("report_to" in spec.model_dump(mode="json")) is bool(kept)


def spec_of(report_to: object) -> JobSpec:
    return JobSpec.model_validate(
        {"base_model": "m", "datasets": [{"path": "x"}], "max_steps": 1, "report_to": report_to}
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tensorbord", "there is no tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["wandb", "none"], "there is no tracker 'none'"),
        ("all", "there are wandb, trackio, tensorboard, mlflow, or none alone"),
        ([["wandb"]], "there is no tracker"),
        (7, "valid tuple"),
    ],
)
def test_unknown_names_are_refused_in_words(given: object, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        spec_of(given)


def test_a_worker_gets_no_report_to(world1: World) -> None:
    """Guard: without the key in `for_machines`, an older worker refused the job."""
    journey = Journey.of(world1)
    assignment = journey.begin().assignment
    assert assignment is not None
    assert "report_to" not in assignment.spec.model_dump(mode="json")


def test_what_cannot_be_written_is_refused_at_submission(world1: World) -> None:
    """Guard: without `refuse_unwritable` the job was queued, and its curve never came."""
    with pytest.raises(InvalidError, match="does not write to experiment trackers"):
        world1.submit("alice", report_to="wandb")
    trackers = PaperTrackers(world1, problem="Weights & Biases needs an API key.")
    world1.ctx = replace(world1.ctx, trackers=trackers)
    with pytest.raises(InvalidError, match="needs an API key") as caught:
        world1.submit("alice", report_to="wandb")
    assert caught.value.problems[0][0] == "/report_to"


def test_logins_are_sealed_and_go_with_their_member(world: World) -> None:
    """Guards: without `remove_logins` a removed member's key stayed. Without `is_trusted` everybody was an admin."""
    journey = Journey.of(world)
    alice, ctx = world.actors["alice"], world.ctx
    with pytest.raises(InvalidError, match="no user, no query"):
        tracker_logins.set_login(ctx, alice, "mlflow", key="k", url="https://u:p@x.example", project="")
    tracker_logins.set_login(ctx, alice, "wandb", key=" canary ", url="https://x.example/", project="p")
    login = tracker_logins.login_of(ctx, "alice", "wandb")
    assert login is not None
    assert (login.key, login.url, login.project, login.is_trusted) == ("canary", "https://x.example", "p", False)
    assert "canary" not in repr(login) + repr(tracker_logins.states(ctx, "alice"))
    with ctx.uow() as tx:
        assert all("canary" not in kept.sealed for kept in tx.tracking.logins("alice"))
    boss = replace(alice, role=Role.ADMIN)
    tracker_logins.set_login(ctx, boss, "wandb", key="k", url="", project="")
    trusted = tracker_logins.login_of(ctx, "alice", "wandb")
    assert trusted is not None
    assert trusted.is_trusted
    jobs.cancel(ctx, alice, journey.job)
    remove_member(ctx, admin(world), "alice")
    assert tracker_logins.login_of(ctx, "alice", "wandb") is None
    assert journey.run().reason == "Its owner was removed from this server."
    assert journey.look().told == ""


def test_a_copied_server_leaves_the_runs_to_the_original(world1: World) -> None:
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 4)
    leave_to_the_original(world1.ctx)
    assert "belongs to the original server" in journey.look().reason
    assert journey.steps() == []


def test_a_deleted_job_takes_its_files_along(world1: World) -> None:
    journey = Journey.of(world1)
    jobs.cancel(world1.ctx, world1.actors["alice"], journey.job)
    jobs.delete(world1.ctx, world1.actors["alice"], journey.job)
    assert journey.trackers.forgotten == [journey.job]
    with world1.ctx.uow() as tx:
        assert tx.tracking.of_job(journey.job) == []


def test_due_runs_are_written_by_threads_of_their_own(world1: World) -> None:
    """Guard: with no room left, a writer waited for the others and held the round up."""
    journey = Journey.of(world1)
    worker = journey.begin()
    journey.train(worker, 12)
    journey.finish(worker)
    context = ReportingContext(ctx=world1.ctx, trackers=journey.trackers)
    taken = [context.room.acquire(blocking=False) for _ in range(8)]
    report_due(context)
    context.running.gather({"alice/wandb": lambda: None}, 10.0, lambda: None)
    assert all(taken)
    assert journey.steps() == []
    for _ in taken:
        context.room.release()
    report_due(context)
    context.running.gather({"alice/wandb": lambda: None}, 10.0, lambda: None)
    assert journey.steps() == list(range(1, 13))
