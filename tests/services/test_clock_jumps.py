"""The computer's clock jumps, by a year either way, in flight and between two starts: it costs a line in the log."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.steady_clock import SteadyClock
from orchestrator.bootstrap import App
from orchestrator.domain.accounts import Member, Role, Token
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.background.scheduler import Ticker
from orchestrator.ports.providers import Liveness
from orchestrator.services import clock_jumps, jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.offline_sessions import is_to_be_stopped
from orchestrator.services.reconcile import Watch
from orchestrator.services.retention import DAY_S
from tests.helpers.world import Worker, World
from worker.shared.messages import Action

YEAR_S = 365 * 86_400.0
JUMPS = pytest.mark.parametrize("jump", [YEAR_S, -YEAR_S])


class Computer:
    """Its wall clock, which can be set, and the seconds since it was started, which cannot."""

    def __init__(self, wall: float = 1_760_000_000.0) -> None:
        self.wall, self.elapsed, self.boot = wall, 500.0, "boot-1"

    def tick(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds

    def clock(self, file: Path | None = None) -> SteadyClock:
        return SteadyClock(file, wall=lambda: self.wall, elapsed=lambda: self.elapsed, boot=lambda: self.boot)


class Shop:
    """A server over a computer's clock, with one session at work."""

    def __init__(self, world: World) -> None:
        self.world, self.computer = world, Computer()
        self.clock = world.clock = self.computer.clock()  # pyright: ignore[reportAttributeAccessIssue]
        world.start_server()
        self.watch = Watch(world.ctx, longest_rest_s=world.ctx.limits.report_every_s)
        self.job = world.submit("alice", steps=8)
        dispatch(world.ctx)
        (self.worker,) = world.new_workers()

    def round(self) -> None:
        self.computer.tick(5.0)
        clock_jumps.follow(self.world.ctx, self.clock)
        self.watch.round()


@pytest.fixture
def shop(world: World) -> Shop:
    return Shop(world)


def works_on(worker: Worker) -> None:
    worker.step += 1
    assert worker.report().action is Action.CONTINUE
    assert worker.save().committed


@JUMPS
def test_a_session_at_work_notices_nothing(shop: Shop, jump: float) -> None:
    """Guard: without `shift` its time limit had passed after a year forward, and the machine was stopped."""
    shop.worker.start()
    shop.round()
    shop.computer.wall += jump
    for _ in range(3):
        shop.round()
    works_on(shop.worker)
    assert shop.worker.is_alive
    assert shop.world.job(shop.job).state is JobState.RUNNING
    assert abs(shop.clock.now() - shop.computer.wall) < 1


@JUMPS
def test_a_session_that_nobody_sees_expires_in_its_own_time(shop: Shop, jump: float) -> None:
    """Guard: without `shift` and the lower bound in `Watch`, it lived for another year after a year back."""
    shop.worker.start()
    shop.world.machines.liveness[shop.worker.lease] = Liveness.UNSEEN
    shop.computer.wall += jump
    shop.round()
    assert shop.world.job(shop.job).state is JobState.RUNNING
    for _ in range(int(shop.world.ctx.limits.lease_s // 5) + 2):
        shop.round()
    assert shop.world.job(shop.job).state is JobState.QUEUED


@JUMPS
def test_a_time_limit_passes_when_it_has_passed(shop: Shop, jump: float) -> None:
    shop.worker.start()
    shop.computer.wall += jump
    shop.round()
    (lease,) = (x for x in shop.world.all_leases() if x.id == shop.worker.lease)
    left = lease.deadline_at - shop.clock.now()
    assert 0 < left < lease.budget_s + shop.world.ctx.limits.stop_grace_s
    shop.computer.tick(left + 1)
    for _ in range(int(shop.world.ctx.limits.stop_grace_s // 5) + 3):
        shop.round()
    assert not shop.worker.is_alive


@JUMPS
def test_a_job_and_an_account_that_rest_rest_as_long(shop: Shop, jump: float) -> None:
    """Guard: without their rows in `_COMPARED` both rested for a year after a year back."""
    job_id = shop.world.submit("bob")
    with shop.world.ctx.uow() as tx:
        account, job = tx.accounts.get("bob-sim"), tx.jobs.get(job_id)
        assert account is not None
        assert job is not None
        account.not_before = job.not_before = shop.clock.now() + 100
        tx.accounts.save(account)
        tx.jobs.save(job)
        member = tx.members.all()[0].id
        tx.tokens.add(
            Token(id="t", member_id=member, name="t", role=Role.MEMBER, created_at=0.0, expires_at=job.not_before), "t"
        )
    shop.computer.wall += jump
    shop.round()
    with shop.world.ctx.uow() as tx:
        account, again = tx.accounts.get("bob-sim"), tx.jobs.get(job.id)
        (token,) = tx.tokens.all(member)
    assert account is not None
    assert again is not None
    for at in (account.not_before, again.not_before, token.expires_at):
        assert at == pytest.approx(shop.clock.now() + 95, abs=1)


def test_a_request_to_stop_keeps_its_age(shop: Shop) -> None:
    shop.worker.start()
    jobs.cancel(shop.world.ctx, shop.world.actors["alice"], shop.job)
    shop.computer.wall -= YEAR_S
    for _ in range(int(shop.world.ctx.limits.stop_grace_s // 5) + 3):
        shop.round()
    assert not shop.worker.is_alive


def test_a_glitch_of_seconds_leaves_everything_as_it_was(shop: Shop) -> None:
    shop.worker.start()
    before = shop.world.all_leases()
    for jump in (YEAR_S, -YEAR_S):
        shop.computer.wall += jump
        clock_jumps.follow(shop.world.ctx, shop.clock)
    after = shop.world.all_leases()
    assert [x.deadline_at for x in after] == pytest.approx([x.deadline_at for x in before])


def test_if_the_commit_fails_the_clock_stays(shop: Shop) -> None:
    """Guard: without the way back, the clock jumped and the times did not."""

    @contextmanager
    def full():
        with shop.world.watch() as tx:
            yield tx
            raise OSError(28, "No space left on device")

    shop.computer.wall += YEAR_S
    before = shop.clock.now()
    with pytest.raises(OSError, match="No space"):
        clock_jumps.follow(replace(shop.world.ctx, uow=full), shop.clock)
    assert shop.clock.now() == before
    assert clock_jumps.follow(shop.world.ctx, shop.clock) == pytest.approx(YEAR_S)


@JUMPS
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_a_jump_between_two_starts_is_noticed(tmp_path: Path, jump: float, boot: str) -> None:
    """After a restart of the computer, a jump forward cannot be told from time that has passed.

    Guard: without the record, the first pass after the start judged sessions by the clock that had jumped.
    """
    computer, file = Computer(), tmp_path / "clock.json"
    first = computer.clock(file)
    assert first.jump() == 0.0
    then = first.now()
    computer.tick(30.0)
    computer.wall += jump
    if boot != computer.boot:
        computer.boot, computer.elapsed = boot, 10.0
    second = computer.clock(file)
    if boot == "boot-1":
        assert second.now() == pytest.approx(then + 30)
        assert second.jump() == pytest.approx(jump)
    elif jump < 0:
        assert second.now() == pytest.approx(then)
        assert second.jump() < 0
    else:
        assert second.jump() == 0.0


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"boot": "boot-1", "at": NaN, "elapsed": 1}', '{"boot": 1}'])
def test_a_damaged_record_is_no_record(tmp_path: Path, said: str) -> None:
    file = tmp_path / "clock.json"
    file.write_text(said)
    assert Computer().clock(file).jump() == 0.0


def test_small_differences_are_followed_silently(shop: Shop) -> None:
    """A time server corrects by parts of a second."""
    shop.computer.wall -= 2.0
    assert clock_jumps.follow(shop.world.ctx, shop.clock) == 0.0
    assert shop.clock.now() == shop.computer.wall
    assert shop.clock.calm_s == float("inf")


def test_nothing_is_tidied_away_soon_after_a_jump(sqlite_app: App) -> None:
    """Guard: without the look at `calm_s`, a jump of a year deleted what was a second old."""
    computer = Computer()
    clock = computer.clock()
    app = replace(sqlite_app, clock=clock, context=replace(sqlite_app.context, clock=clock))
    at = clock.now()
    token = Token(id="t", member_id="m", role=Role.MEMBER, name="old", created_at=at, expires_at=at + 1)
    with app.context.uow() as tx:
        tx.members.add(Member(id="m", name="m", role=Role.MEMBER, created_at=0.0))
        tx.tokens.add(token, "hash")
    computer.wall += YEAR_S
    clock.follow(clock.jump())
    computer.tick(100.0)
    assert clock.calm_s == pytest.approx(100.0)
    ticker = Ticker(app)
    ticker._tidy()
    with app.context.uow() as tx:
        assert tx.tokens.all("m")
    computer.tick(2 * DAY_S)
    ticker._tidy()
    with app.context.uow() as tx:
        assert not tx.tokens.all("m")


def test_a_pause_waits_for_a_checkpoint_that_was_saved_after_it(shop: Shop) -> None:
    """Guard: with only the pause's time moved, a jump back made the checkpoint before it look newer."""
    shop.worker.start()
    works_on(shop.worker)
    shop.computer.tick(10.0)
    jobs.pause(shop.world.ctx, shop.world.actors["alice"], shop.job)
    shop.computer.wall -= YEAR_S
    clock_jumps.follow(shop.world.ctx, shop.clock)
    (lease,) = shop.world.all_leases()
    assert not is_to_be_stopped(shop.world.ctx, lease)
    shop.computer.tick(10.0)
    shop.worker.step += 1
    assert shop.worker.save().committed
    assert is_to_be_stopped(shop.world.ctx, lease)
