"""Sessions that end before their first step: how long their job waits, when it stops, and in which words; on both
databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.accounts import Account
from orchestrator.domain.jobs import LOSSES_BEFORE_GIVING_UP, Lease
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.ports.providers import Capabilities, LaunchRequest, ProviderUnavailable
from orchestrator.services import accounts, jobs
from orchestrator.services.dispatch import dispatch, why_waiting
from orchestrator.services.failed_starts import SMOKE_REST_S, WAITS_S, Explanation, sentence
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import Start, receive
from tests.helpers.world import Worker, World
from worker.shared import causes
from worker.shared.manifest import Hardware
from worker.shared.messages import Failure, Finish, Phase, Release, Report, StartRequest

CONFLICT = "ERROR: Cannot install peft and torchao"
PHOTO = "2026-05-14"


def launched(world: World) -> Worker:
    assert dispatch(world.ctx) == 1
    (worker,) = world.new_workers()
    return worker


def started(world: World, image: str = "") -> Worker:
    worker = launched(world)
    request = StartRequest(protocol=1, nonce=worker.lease, hardware=Hardware(name="sim"), image=image)
    worker.assignment = receive(world.ctx, Start(lease=worker.lease, request=request))
    worker.step, worker.parent = worker.assignment.resume_step, None
    return worker


def lease_of(world: World, worker: Worker) -> Lease:
    with world.ctx.uow() as tx:
        found = tx.leases.get(worker.lease)
    assert found is not None
    return found


def account(world: World, who: str = "alice") -> Account:
    with world.ctx.uow() as tx:
        found = tx.accounts.get(f"{who}-sim")
    assert found is not None
    return found


def wait_out(world: World, job: str) -> float:
    """Let the time pass until the next try; returns how long that was."""
    waits_s = max(0.0, world.job(job).not_before - world.clock.now())
    world.clock.tick(waits_s)
    return waits_s


def end(worker: Worker, cause: str, words: str = "words", *, has_remedy: bool = False) -> None:
    worker.release("unfit", words, cause, has_remedy=has_remedy)


def lost_after(worker: Worker, seconds: float) -> None:
    """The worker reports its own clock once, and its machine is gone."""
    assert worker.assignment is not None
    said = Report(
        lease=worker.lease,
        fence=worker.assignment.fence,
        seq=1,
        step=worker.step,
        phase=Phase.DOWNLOAD,
        ledger={Phase.DOWNLOAD: seconds},
    )
    receive(worker.world.ctx, said)
    worker.world.machines.end(worker.lease)
    reconcile(worker.world.ctx)


def test_three_sessions_without_a_step_for_one_cause_stop_the_job(world: World) -> None:
    """Guard: without `stop` in `Job.give_back` the job went on to twenty machines, each for the same error of pip."""
    job, waited = world.submit("alice"), list[float]()
    for _ in range(3):
        waited.append(wait_out(world, job))
        worker = started(world)
        end(worker, causes.INSTALL, CONFLICT)
        lease = lease_of(world, worker)
        assert (lease.cause, lease.detail) == (causes.INSTALL, sentence(Explanation(CONFLICT, causes.INSTALL)))
    assert waited == [0.0, *WAITS_S[:2]]
    found = world.job(job)
    assert found.state is JobState.FAILED
    assert found.message == (
        f"stopped after 3 sessions without a step, because the packages could not be installed ({CONFLICT}): update "
        "trainhop if packages conflict, or check the machine's internet access, then retry the job"
    )


def test_a_machine_that_is_too_small_stops_a_job_at_the_third_time(world: World) -> None:
    """Guard: without `causes.MEMORY` it was tried on twenty machines, all of that size."""
    job = world.submit("alice")
    small = "org/m needs about 40.0 GiB on Tesla T4, which has 14.6 GiB free; use a larger card"
    for _ in range(3):
        wait_out(world, job)
        end(started(world), causes.MEMORY, small, has_remedy=True)
    assert world.job(job).state is JobState.FAILED
    assert world.job(job).message == f"stopped after 3 sessions without a step, because {small}"


def test_a_job_goes_on_where_the_machine_was_not_too_small(world: World) -> None:
    """Guard: without `too_small_at` in `_claim` it went to the first account again, although another one was free."""
    pool = replace(account(world), id="pool", name="pool", member_id=None)
    with world.ctx.uow() as tx:
        tx.accounts.add(pool)
    job, seen = world.submit("alice"), list[str]()
    for _ in range(2):
        wait_out(world, job)
        worker = started(world)
        seen.append(lease_of(world, worker).account_id)
        end(worker, causes.MEMORY)
    assert seen == ["alice-sim", "pool"]
    wait_out(world, job)
    assert lease_of(world, launched(world)).account_id == "alice-sim", (
        "all were too small: its memory may have been in use"
    )


def test_while_it_waits_a_job_says_the_cause_and_the_remedy(world: World) -> None:
    """Guard: without `sentence` in `setbacks.close` people read pip's words and not what they could do."""
    job = world.submit("alice")
    end(started(world), causes.DISK, "0 bytes left")
    waits = why_waiting(world.ctx, job)
    assert waits is not None
    assert waits.until == world.clock.now() + WAITS_S[0]
    assert waits.reason.endswith(
        "the last session ended: the disk of this machine is full (0 bytes left): free some space, or choose a smaller "
        "base model"
    )


def test_different_causes_count_separately_and_wait_longer_each_time(world: World) -> None:
    """Guards: counted together the job stopped at its third session; with waits by cause none was as long as half an
    hour."""
    job, waited = world.submit("alice"), list[float]()
    for cause in (causes.INSTALL, causes.MODEL, causes.INSTALL, causes.MODEL, causes.INSTALL):
        assert world.job(job).state is JobState.QUEUED
        waited.append(wait_out(world, job))
        end(started(world), cause)
    assert waited == [0.0, *WAITS_S, WAITS_S[-1]]
    assert world.job(job).state is JobState.FAILED


def test_a_session_that_makes_a_step_forgives_those_before_it(world: World) -> None:
    """Guard: without the look at steps in `_since_the_last_step` two bad mornings and one bad evening ended a job."""
    job = world.submit("alice")
    for _ in range(2):
        wait_out(world, job)
        end(started(world), causes.MODEL)
    wait_out(world, job)
    worker = started(world)
    worker.step += 1
    worker.report()
    end(worker, causes.DISK)
    assert lease_of(world, worker).cause == ""
    wait_out(world, job)
    end(started(world), causes.MODEL)
    assert world.job(job).state is JobState.QUEUED


def test_a_job_that_is_retried_begins_to_count_anew(world: World) -> None:
    """Guard: without `counted` in `_since_the_last_step` a retried job stopped at its first session."""
    job = world.submit("alice")
    for again in (0, 1):
        for _ in range(3 - again):
            wait_out(world, job)
            end(started(world), causes.MODEL)
        if again == 0:
            assert world.job(job).state is JobState.FAILED
            jobs.retry(world.ctx, world.actors["alice"], job)
    assert world.job(job).state is JobState.QUEUED


def test_a_failure_with_a_cause_is_no_crash(world: World) -> None:
    """Guard: without `cause` in `Job.give_back` four failures for four causes ended the job as one that always
    crashes."""
    job = world.submit("alice")
    for cause in (causes.INSTALL, causes.MODEL, causes.IMPORTS, causes.GPUS):
        wait_out(world, job)
        worker = started(world)
        failure = Failure(message="words", permanent=False, cause=cause)
        receive(
            world.ctx, Finish(lease=worker.lease, fence=lease_of(world, worker).fence, seq=1, step=0, failure=failure)
        )
        assert lease_of(world, worker).cause == cause
    assert (world.job(job).state, world.job(job).failures_in_a_row) == (JobState.QUEUED, 0)


def test_a_failure_for_good_says_the_remedy_too(world: World) -> None:
    job = world.submit("alice")
    worker = started(world)
    failure = Failure(message="404 Not Found", permanent=True, cause=causes.MODEL)
    receive(world.ctx, Finish(lease=worker.lease, fence=1, seq=1, step=0, failure=failure))
    assert world.job(job).message == sentence(Explanation("404 Not Found", causes.MODEL))


def test_sessions_that_are_killed_stop_no_job(world: World) -> None:
    """Guard: with every session without a step counted, a machine that is taken away at random ended a job at its
    third."""
    job = world.submit("alice")
    for number in range(LOSSES_BEFORE_GIVING_UP - 1):
        wait_out(world, job)
        world.machines.end((started if number % 2 else launched)(world).lease)
        reconcile(world.ctx)
    found = world.job(job)
    assert (found.state, found.losses_in_a_row) == (JobState.QUEUED, LOSSES_BEFORE_GIVING_UP - 1)


def test_a_launch_that_is_refused_three_times_stops_the_job(world: World) -> None:
    """Guard: without LAUNCH as its cause the same words came back twenty times."""
    world.machines.rejecting = True
    job = world.submit("alice")
    for _ in range(3):
        wait_out(world, job)
        assert dispatch(world.ctx) == 1
    assert world.job(job).message == (
        "stopped after 3 sessions without a step, because the provider refused to start the session (not today): fix "
        "what it reports, then retry the job"
    )


def test_the_start_script_may_give_a_lease_back_that_nobody_started(world: World) -> None:
    """Guard: without `PROVISIONING -> RELEASED` in the table what pip said never reached the job."""
    job = world.submit("alice")
    worker = launched(world)
    said = Release(lease=worker.lease, fence=1, seq=1, step=0, reason="unfit", detail=CONFLICT, cause=causes.INSTALL)
    receive(world.ctx, said)
    receive(world.ctx, said)
    lease = lease_of(world, worker)
    assert (lease.state, lease.end_reason, lease.cause) == (LeaseState.RELEASED, EndReason.UNFIT, causes.INSTALL)
    assert world.job(job).losses_in_a_row == 1


@pytest.mark.parametrize("failed", [True, False])
def test_a_machine_that_ends_by_an_error_before_the_start_has_a_cause(world: World, failed: bool) -> None:
    """Guards: without `failed` in `_why_unstarted` a start script that is broken was pushed twenty times; with START
    for every machine that ends before the start, killed ones stopped the job.
    """
    job = world.submit("alice")
    worker = launched(world)
    world.machines.failed.update([worker.lease] if failed else [])
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert lease_of(world, worker).cause == (causes.START if failed else "")
    assert wait_out(world, job) == (WAITS_S[0] if failed else 0.0)


def test_a_machine_that_ends_by_an_error_after_the_start_has_none(world: World) -> None:
    """Guard: without the look at `started_at` a worker that crashed in training was called a start script that did."""
    world.submit("alice")
    worker = started(world)
    world.machines.failed.add(worker.lease)
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert lease_of(world, worker).cause == ""


def at_its_deadline(worker: Worker) -> None:
    worker.release("deadline", "", causes.MODEL)


def cut_off(worker: Worker) -> None:
    lost_after(worker, 0.95 * 3600.0)


@pytest.mark.parametrize("passes", [at_its_deadline, cut_off])
def test_two_whole_sessions_without_a_step_stop_the_job(world: World, passes: Callable[[Worker], None]) -> None:
    """Guards: without `said.reason == "deadline"` in `release`, or NEARLY_WHOLE in `_cause_of`, a download that stalled
    ate one session after the other.
    """
    job = world.submit("alice")
    for _ in range(2):
        worker = started(world)
        passes(worker)
        assert lease_of(world, worker).cause == causes.NO_STEP
    found, phase = world.job(job), "boot" if passes is at_its_deadline else "download"
    assert found.state is JobState.FAILED
    assert found.message.startswith(f"2 sessions ended without a step (last phase: {phase}")
    assert found.message.endswith("allow longer sessions or choose a smaller base model")


def test_a_session_that_is_killed_early_passed_not_whole(world: World) -> None:
    """Guard: measured by the server's clock, which ran on while the server was off, it was a whole session."""
    world.submit("alice")
    worker = started(world)
    world.clock.tick(10 * 3600.0)
    lost_after(worker, 60.0)
    assert lease_of(world, worker).cause == ""


@pytest.mark.parametrize("up", [True, False])
def test_a_machine_that_never_called_in_its_whole_time_has_a_cause(world: World, up: bool) -> None:
    """Guards: without `watched_s` such a machine was replaced by nineteen others; without `started_at` of the server in
    it a machine that was killed while the server was off counted as well.
    """
    world.submit("alice")
    worker = launched(world)
    world.clock.tick(3500.0)
    if not up:
        world.start_server()
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert lease_of(world, worker).cause == (causes.NO_STEP if up else "")


def test_a_launch_that_nobody_confirmed_was_no_session(world: World) -> None:
    """Guard: without `external_id` in `_why_unstarted` a provider that was away for a day cost the job a whole
    session."""
    world.submit("alice")

    def away(_: LaunchRequest) -> None:
        raise ProviderUnavailable("no route")

    world.machines.before["launch"] = away
    assert dispatch(world.ctx) == 1
    world.machines.before.clear()
    (lease,) = world.all_leases()
    world.clock.tick(3500.0)
    reconcile(world.ctx)
    with world.ctx.uow() as tx:
        found = tx.leases.get(lease.id)
    assert found is not None
    assert (found.end_reason, found.cause) == (EndReason.LOST, "")
    assert found.detail == "it was not started: no route"


def test_a_full_disk_of_this_server_costs_the_job_nothing(world: World) -> None:
    """Guard: without the look at `errno`, twenty launches on a full disk ended the job."""

    def full(_: LaunchRequest) -> None:
        raise OSError(28, "No space left on device")

    world.machines.capabilities = Capabilities(provider="sim", shares_disk=True, personal=True, this_computer=True)
    job = world.submit("alice")
    world.machines.before["launch"] = full
    for _ in range(25):
        with pytest.raises(OSError, match="No space"):
            dispatch(world.ctx)
        world.clock.tick(5.0)
        assert (world.job(job).state, world.job(job).losses_in_a_row) == (JobState.QUEUED, 0)
    world.machines.before.clear()
    dispatch(world.ctx)
    assert world.job(job).state is JobState.LEASED


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(5, "Input/output error"), "Input/output error"), (TypeError("x"), "an unexpected error")],
)
def test_an_error_of_this_server_at_a_launch_is_told(world: World, error: Exception, words: str) -> None:
    """Guard: without `_note_silence` for every error, the job waited without a reason, and then one was guessed."""

    def fails(_: LaunchRequest) -> None:
        raise error

    world.submit("alice")
    world.machines.before["launch"] = fails
    with pytest.raises(type(error)):
        dispatch(world.ctx)
    (lease,) = world.all_leases()
    assert words in lease.detail
    assert "machine ended" not in lease.detail


def test_what_a_provider_said_at_the_launch_is_shown_until_the_start(world: World) -> None:
    """Guards: without `_note_silence` a person who waited saw nothing; without the reset in `_begin` a session that
    trained still showed it.
    """
    world.machines.lose_reply = True
    job = world.submit("alice")
    assert dispatch(world.ctx) == 1
    waits = why_waiting(world.ctx, job)
    assert waits is not None
    assert waits.reason == "the provider has not confirmed the session yet: the answer was lost"
    (worker,) = world.new_workers()
    worker.start()
    assert lease_of(world, worker).detail == ""
    assert why_waiting(world.ctx, job) is None


# --- the smoke step ---------------------------------------------------------------------------------------


def test_an_image_that_fails_the_smoke_step_costs_the_job_nothing(world: World) -> None:
    """Guards: counted, the job came nearer to its end by a fault of the machine; without `_rest` it was sent back for
    ever."""
    job = world.submit("alice")
    for _ in range(2):
        end(started(world, PHOTO), causes.SMOKE, "ImportError: torchao")
        found = world.job(job)
        assert (found.state, found.losses_in_a_row, found.not_before) == (JobState.QUEUED, 0, world.clock.now())
    assert dispatch(world.ctx) == 0
    waits = why_waiting(world.ctx, job)
    assert waits is not None
    assert waits.until == world.clock.now() + SMOKE_REST_S
    assert waits.reason == (
        f"alice's: suspended after 2 failed sessions in a row (image {PHOTO}): training does not work on the "
        "image of this machine "
        "(ImportError: torchao): update trainhop, or find the cause with `trainhop doctor`; it is "
        "retried in 24 hours, or "
        "after `trainhop accounts check 'alice'\"'\"'s'`"
    )
    world.clock.tick(SMOKE_REST_S)
    assert dispatch(world.ctx) == 1


def test_an_account_that_rests_starts_again_when_its_owner_checks_it(world: World) -> None:
    """Guard: without the reset in `accounts.check` a trainhop that was updated waited for the next day."""
    world.submit("alice")
    for _ in range(2):
        end(started(world, PHOTO), causes.SMOKE)
    assert dispatch(world.ctx) == 0
    accounts.check(world.ctx, world.actors["alice"], "alice-sim")
    assert dispatch(world.ctx) == 1


def test_an_image_on_which_a_step_was_made_in_between_is_sound(world: World) -> None:
    """Guards: without the look at steps in `_smokes` two failures with a week of training between them closed the
    account; without the image, two that saw different ones did.
    """
    job = world.submit("alice")
    end(started(world, PHOTO), causes.SMOKE)
    world.clock.tick(1.0)
    worker = started(world, PHOTO)
    worker.step += 1
    worker.report()
    worker.release()
    world.clock.tick(1.0)
    end(started(world, PHOTO), causes.SMOKE)
    world.clock.tick(1.0)
    end(started(world, "2026-08-19"), causes.SMOKE)
    assert account(world).not_before == 0.0
    assert world.job(job).state is JobState.QUEUED


def test_an_account_whose_image_is_another_each_time_rests_as_well(world: World) -> None:
    """Guard: without SMOKES_ON_ANY sessions followed each other without a pause for as long as images differed."""
    world.submit("alice")
    for number in range(4):
        assert account(world).not_before == 0.0
        end(started(world, f"image-{number}"), causes.SMOKE)
    assert account(world).not_before == world.clock.now() + SMOKE_REST_S


# --- the words --------------------------------------------------------------------------------------------


def test_a_cause_that_only_a_newer_worker_knows_counts_like_any_other(world: World) -> None:
    job = world.submit("alice")
    for _ in range(3):
        wait_out(world, job)
        end(started(world), "gremlins", "they were many")
    assert "(gremlins) (they were many)" in world.job(job).message


def test_a_person_who_pauses_is_no_cause(world: World) -> None:
    """Guard: without PAUSED in `_cause_of` a long session that was paused before its first step counted."""
    job: Any = world.submit("alice")
    worker = started(world)
    jobs.pause(world.ctx, world.actors["alice"], job)
    said = Release(
        lease=worker.lease, fence=1, seq=1, step=0, reason="paused", ledger={Phase.DOWNLOAD: 3599.0}, cause=""
    )
    receive(world.ctx, said)
    assert (lease_of(world, worker).cause, world.job(job).state) == ("", JobState.PAUSED)
