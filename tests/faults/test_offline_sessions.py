"""Machines that cannot call: lines torn, lost and late, stores and providers away, the server killed between any two
lines.

Every test names the guard whose removal it was seen to notice.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.domain.jobs import Lease
from orchestrator.domain.lifecycle import CheckpointState, EndReason, JobState, LeaseState
from orchestrator.entrypoints.background.log_followers import Follower
from orchestrator.ports.providers import Handle, Liveness, ProviderUnavailable
from orchestrator.ports.stores import StoreUnavailable
from orchestrator.services import jobs, worker_messages
from orchestrator.services.dispatch import dispatch, why_waiting
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import ApplyResult
from tests.helpers.offline_world import OfflineWorker, OfflineWorld
from worker.agent import early_release
from worker.shared import causes
from worker.shared.messages import GrantKind, signed_message

STEPS = 4
PATIENCE_S = 20.0


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[OfflineWorld]:
    engine = make_engine(database_url)
    yield OfflineWorld(engine, tmp_path)
    engine.dispose()


def launched(world: OfflineWorld) -> OfflineWorker:
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    assert isinstance(worker, OfflineWorker)
    return worker


def at_work(world: OfflineWorld, saves: int = 2) -> OfflineWorker:
    """A session that has begun and made some saves, of which nobody has heard yet."""
    worker = launched(world)
    worker.start()
    for _ in range(saves):
        worker.step += 1
        worker.report()
        worker.save()
    return worker


def lease(world: OfflineWorld, worker: OfflineWorker) -> Lease:
    with world.ctx.uow() as tx:
        found = tx.leases.get(worker.lease)
    assert found is not None
    return found


def test_a_machine_that_cannot_call_is_given_all_it_needs(world: OfflineWorld) -> None:
    world.submit("alice", STEPS, checkpoint={"max_interval_s": 600})
    request = launched(world).request
    assert request.server_url is None
    assert request.assignment is not None
    kinds = [g.kind for g in request.assignment.uploads]
    assert kinds.count(GrantKind.CHECKPOINT) == 3600 / 600 + 4
    assert kinds.count(GrantKind.ADAPTER) == 2
    (grant,) = request.assignment.datasets
    assert (grant.path, grant.url) == (None, None)
    assert b"".join(request.inputs[grant.key]()) == b"rows"


def test_with_a_public_address_it_calls_like_any_other(world: OfflineWorld) -> None:
    world.ctx = dataclasses.replace(world.ctx, public_url="https://train.example")
    world.submit("alice", STEPS)
    request = launched(world).request
    assert (request.server_url, request.assignment) == ("https://train.example", None)


@pytest.mark.parametrize("heard", [True, False])
def test_what_a_start_script_says_is_heard_although_no_worker_began(world: OfflineWorld, heard: bool) -> None:
    """While its output is followed, or when what it left is collected."""
    job = world.submit("alice", STEPS)
    worker = launched(world)
    given = worker.request.assignment
    assert given is not None
    keep = world.folder / "keep"
    keep.mkdir()
    ticket = {
        "lease": worker.lease,
        "token": worker.request.token,
        "assignment": given.model_dump(mode="json") | {"keep_dir": str(keep)},
    }
    said = early_release.release(ticket, "the disk of this machine is full", cause=causes.DISK)
    early_release.send(ticket, said, worker.session.printed.append)
    worker.session.outbox += (keep / "outbox.jsonl").read_text().splitlines()
    world.machines.end(worker.lease)
    if heard:
        assert world.listen(worker.lease) is ApplyResult.TAKEN
    reconcile(world.ctx)
    ended = lease(world, worker)
    assert ended.end_reason is EndReason.UNFIT
    assert ended.detail.startswith("the disk of this machine is full: free some space")
    assert world.job(job).state is JobState.QUEUED


def test_a_machine_that_can_call_is_told_its_fence(world: OfflineWorld) -> None:
    """Its start script cannot ask for it. Guard: without it the script's last words would be nobody's."""
    world.ctx = dataclasses.replace(world.ctx, public_url="https://train.example")
    world.submit("alice", STEPS)
    worker = launched(world)
    assert worker.request.fence == lease(world, worker).fence


@pytest.mark.parametrize("upto", range(8))
def test_the_server_dies_after_any_line(world: OfflineWorld, upto: int) -> None:
    """Guard: without `LogReader` beginning at the first line again, what came before the crash's end is lost."""
    job = world.submit("alice", STEPS)
    worker = at_work(world, 3)
    world.listen(worker.lease, upto)
    world.start_server()
    assert world.listen(worker.lease) is ApplyResult.TAKEN
    assert world.listen(worker.lease) is ApplyResult.TAKEN
    assert (world.job(job).head, world.job(job).head_step) == (worker.parent, 3)


@pytest.mark.parametrize("torn", range(8))
def test_a_torn_line_costs_nothing_that_was_saved(world: OfflineWorld, torn: int) -> None:
    """Guard: without `_builds_on_the_unknown` the offers after a torn one are refused as forks and their files
    deleted."""
    job = world.submit("alice", STEPS)
    worker = at_work(world, 3)
    worker.release("deadline")
    worker.session.printed[torn] = worker.session.printed[torn][:-9]
    world.listen(worker.lease)
    world.listen(worker.lease)
    reconcile(world.ctx)
    done = world.job(job)
    assert (done.state, done.head, done.head_step) == (JobState.QUEUED, worker.parent, 3)
    assert world.store.stat(world.head(job).key).sha256 == worker.parent


def test_a_torn_line_does_not_stop_the_news(world: OfflineWorld) -> None:
    """Guard: without going on for the sake of reports a session looks dead from the first torn offer on."""
    world.submit("alice", STEPS)
    worker = at_work(world, 2)
    worker.session.printed[2] = worker.session.printed[2][:40]
    worker.report()
    assert world.listen(worker.lease) is ApplyResult.OUT_OF_ORDER
    assert world.listen(worker.lease) is ApplyResult.OUT_OF_ORDER
    assert lease(world, worker).last_seq == worker.seq


def test_files_that_are_lost_leave_what_was_printed(world: OfflineWorld) -> None:
    """Guard: without reading the output of an ended session, uploaded checkpoints are forgotten with its files."""
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    worker.session.lost = True
    world.machines.end(worker.lease)
    reconcile(world.ctx)
    assert (world.job(job).state, world.job(job).head) == (JobState.QUEUED, worker.parent)


def test_kept_files_are_adopted_in_their_order(world: OfflineWorld) -> None:
    """Guard: without `SessionOutput.files` being stored first, the held offers speak of nothing."""
    job = world.submit("alice", STEPS)
    worker = at_work(world, 1)
    worker.holding = True
    for worker.step in range(2, STEPS + 1):
        worker.save()
    worker.finish()
    assert world.listen(worker.lease) is ApplyResult.TAKEN
    assert world.job(job).head_step == 1, "a goodbye has overtaken a checkpoint"
    reconcile(world.ctx)
    done = world.job(job)
    assert (done.state, done.head) == (JobState.SUCCEEDED, worker.parent)
    assert world.store.stat(done.adapter_key or "").sha256 == done.adapter_zip_sha256


@pytest.mark.parametrize("name", ["jobs/other/f1/0123456789abcdef.zip", "../../etc/passwd", "JOBS", "a" * 300])
def test_a_machine_names_no_file_outside_its_folder(world: OfflineWorld, name: str, tmp_path: Path) -> None:
    """Guard: without `_is_of` a machine writes wherever it likes, or a strange name blocks its job for ever."""
    world.submit("alice", STEPS)
    worker = at_work(world)
    (tmp_path / "evil").write_bytes(b"evil")
    worker.session.files[name] = tmp_path / "evil"
    world.machines.end(worker.lease)
    before = sorted(world.folder.rglob("*"))
    reconcile(world.ctx)
    assert sorted(world.folder.rglob("*")) == before
    assert not lease(world, worker).state.is_live


def test_a_store_that_is_away_is_waited_for(world: OfflineWorld) -> None:
    """Guard: without LATER an offer is passed over, and its successors are refused. Without the exception in
    `abandon_stale` it is deleted after an hour, though nobody will offer it again.
    """
    job = world.submit("alice", STEPS)
    worker = at_work(world)

    def away(key: str) -> None:
        raise StoreUnavailable("no route")

    world.store.before["stat"] = away
    assert world.listen(worker.lease) is ApplyResult.RETRY
    world.clock.tick(world.ctx.limits.offer_ttl_s + 1)
    reconcile(world.ctx)
    worker.release()
    reconcile(world.ctx)
    assert world.job(job).state.holds_lease
    world.store.before.clear()
    reconcile(world.ctx)
    assert (world.job(job).state, world.job(job).head) == (JobState.QUEUED, worker.parent)


def test_a_provider_that_is_away_is_waited_for_beyond_the_deadline(world: OfflineWorld) -> None:
    """Guard: without `_is_wanted` a laptop that was offline overnight throws the night's work away."""
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    worker.release()
    world.machines.set_reachable(reachable=False)
    world.clock.tick(200_000)
    reconcile(world.ctx)
    assert world.job(job).state.holds_lease
    world.machines.set_reachable(reachable=True)
    reconcile(world.ctx)
    assert (world.job(job).state, world.job(job).head) == (JobState.QUEUED, worker.parent)


def test_a_replaced_token_is_used_at_the_next_connection(world: OfflineWorld) -> None:
    """Guard: with the account read once per session, its output was asked for with the old token until the lease
    ended."""
    world.submit("alice", STEPS)
    launched(world)
    tokens: list[str] = []
    asked_again = threading.Event()

    def revoked(handle: Handle) -> None:
        tokens.append(handle.account.credentials or "")
        if len(tokens) > 1:
            asked_again.set()
            follower.stop()
        with world.ctx.uow() as tx:
            account = tx.accounts.get(handle.account.id)
            assert account is not None
            account.credentials = "sealed anew"
            tx.accounts.save(account)
        raise ProviderUnavailable("401: the token was revoked")

    world.machines.before["follow"] = revoked
    follower = Follower(world.ctx, lambda: None, first_pause_s=0.0)
    follower.look()
    assert asked_again.wait(PATIENCE_S)
    (listener,) = follower._listening.values()
    listener.join(PATIENCE_S)
    assert tokens == ["sealed", "sealed anew"]


def test_a_cancelled_job_does_not_wait_for_a_provider_for_ever(world: OfflineWorld) -> None:
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    world.listen(worker.lease)
    world.machines.set_reachable(reachable=False)
    jobs.cancel(world.ctx, world.actors["alice"], job)
    world.clock.tick(200_000)
    reconcile(world.ctx)
    assert world.job(job).state is JobState.CANCELLED


def test_cancel_stops_the_machine_after_taking_what_it_has(world: OfflineWorld) -> None:
    """Guard: without `is_to_be_stopped` a machine that cannot be told trains on until its time is up."""
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    world.listen(worker.lease, 1)
    jobs.cancel(world.ctx, world.actors["alice"], job)
    reconcile(world.ctx)
    assert not worker.is_alive
    reconcile(world.ctx)
    assert (world.job(job).state, world.job(job).head_step) == (JobState.CANCELLED, 2)


def test_pause_waits_for_the_next_commit(world: OfflineWorld) -> None:
    job = world.submit("alice", STEPS)
    worker = at_work(world, 1)
    world.listen(worker.lease)
    world.clock.tick(5)
    jobs.pause(world.ctx, world.actors["alice"], job)
    world.clock.tick(world.ctx.limits.stop_grace_s + 5)
    reconcile(world.ctx)
    assert worker.is_alive
    worker.step += 1
    worker.save()
    world.listen(worker.lease)
    reconcile(world.ctx)
    assert not worker.is_alive
    reconcile(world.ctx)
    assert (world.job(job).state, world.job(job).head_step) == (JobState.PAUSED, 2)
    assert lease(world, worker).state is LeaseState.EXPIRED


def test_waiting_in_the_providers_queue_is_life(world: OfflineWorld) -> None:
    """Guard: without `_deadline` a machine that began late is stopped in the middle of its time."""
    job = world.submit("alice", STEPS)
    worker = launched(world)
    world.clock.tick(5000)
    reconcile(world.ctx)
    assert worker.is_alive
    worker.start()
    world.listen(worker.lease)
    world.clock.tick(3000)
    reconcile(world.ctx)
    assert worker.is_alive
    assert world.job(job).state is JobState.RUNNING
    world.clock.tick(1000)
    reconcile(world.ctx)
    assert not worker.is_alive


def test_a_store_that_opens_no_upload_costs_the_job_nothing(world: OfflineWorld) -> None:
    """Guard: without `counts=False` a store that is away for an afternoon ends every job as hopeless."""
    job = world.submit("alice", STEPS)

    def away(*_: object) -> None:
        raise StoreUnavailable("no route")

    world.store.before["grant_upload"] = away
    for _ in range(30):
        dispatch(world.ctx)
        world.clock.tick(61)
    world.store.before.clear()
    assert world.job(job).state is JobState.QUEUED
    assert world.job(job).losses_in_a_row == 0
    world.clock.tick(-30)
    waits = why_waiting(world.ctx, job)
    assert waits is not None
    assert "the store does not accept files now (no route)" in waits.reason
    world.clock.tick(61)
    launched(world)


def test_one_session_that_cannot_be_settled_keeps_no_other_waiting(world: OfflineWorld) -> None:
    """Guard: without the loop's own `except` the first broken session stops every pass before the others' turn."""
    first, second = world.submit("alice", STEPS), world.submit("bob", STEPS)
    dispatch(world.ctx)
    workers = world.new_workers()
    world.machines.end(*(w.lease for w in workers))
    broken = workers[0].lease

    def fragile(handle: Handle) -> None:
        if handle.lease_id == broken:
            raise ZeroDivisionError

    world.machines.before["collect_outputs"] = fragile
    with pytest.raises(ExceptionGroup):
        reconcile(world.ctx)
    assert {world.job(first).state, world.job(second).state} == {JobState.LEASED, JobState.QUEUED}


FOREIGN = [
    "",
    "\x00\x00",
    "@trainhop",
    "@trainhop x",
    "@trainhop " + "0" * 64 + ' {"kind":"release"}',
    '{"kind":"finish","lease":"x","fence":1,"seq":1,"step":1}',
    "x" * 2_000_000,
    "@trainhop " * 100_000,
    "<html><body>502 Bad Gateway</body></html>",
]


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: line[:24])
def test_what_others_print_is_ignored(world: OfflineWorld, line: str) -> None:
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    worker.session.printed.insert(1, line)
    worker.session.printed[2] = "Epoch 3:  50%|####" + worker.session.printed[2]
    assert world.listen(worker.lease) is ApplyResult.TAKEN
    assert world.job(job).head == worker.parent


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        '{"kind":"report","lease":"LEASE","fence":1,"seq":1e400,"step":1,"phase":"train"}',
        '{"kind":"report","lease":"LEASE","fence":1,"seq":99999999999999999999,"step":1,"phase":"train"}',
        '{"kind":"report","lease":"LEASE","fence":1,"seq":1,"step":-1,"phase":"train"}',
        '{"kind":"report","lease":"another","fence":1,"seq":1,"step":1,"phase":"train"}',
        '{"kind":"release","lease":"LEASE","fence":7,"seq":1,"step":1,"reason":"deadline"}',
        '{"kind":"finish","lease":"LEASE","fence":1,"seq":1,"step":4}',
        '{"kind":"finish","lease":"LEASE","fence":1,"seq":1,"step":4,"adapter":{"key":"../x","sha256":"'
        + "0" * 64
        + '","size":1,"adapter_sha256":"'
        + "0" * 64
        + '"}}',
        '{"a":' * 5000 + "1" + "}" * 5000,
    ],
)
def test_a_machine_that_lies_in_its_own_name_is_refused(world: OfflineWorld, text: str) -> None:
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    world.listen(worker.lease)
    outcome = worker_messages.apply_line(world.ctx, worker.lease, text.replace("LEASE", worker.lease))
    assert outcome.result is ApplyResult.REFUSED
    assert outcome.reason
    assert (world.job(job).state, world.job(job).head) == (JobState.RUNNING, worker.parent)


def test_characters_that_no_database_keeps_stop_nothing(world: OfflineWorld) -> None:
    """Guard: without `protocol.Text` PostgreSQL refuses the last word, and the session is stuck at it."""
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    world.listen(worker.lease)
    said = f'"lease":"{worker.lease}","fence":1,"seq":900,"step":2'
    sample = '{"step":2,"prompt":"a\\u0000b","text":"\\\\u0000 and \\u0000"}'
    report = f'{{"kind":"report",{said},"phase":"train","samples":[{sample}]}}'
    assert worker_messages.apply_line(world.ctx, worker.lease, report).result is ApplyResult.TAKEN
    finish = f'{{"kind":"finish",{said},"failure":{{"message":"byte \\u0000","permanent":true}}}}'
    assert worker_messages.apply_line(world.ctx, worker.lease, finish).result is ApplyResult.TAKEN
    assert world.job(job).message == "byte \ufffd"


def test_another_lease_cannot_sign_for_this_one(world: OfflineWorld) -> None:
    """Guard: `signed_message` under the lease's own token."""
    world.submit("alice", STEPS)
    worker = at_work(world)
    line = worker.session.printed[0]
    assert signed_message(world.ctx.tokens.for_lease(worker.lease), line)
    assert signed_message(world.ctx.tokens.for_lease("lease-other"), line) is None


def test_a_goodbye_is_the_end_even_if_the_machine_lingers(world: OfflineWorld) -> None:
    job = world.submit("alice", STEPS)
    worker = at_work(world)
    worker.release()
    world.machines.liveness[worker.lease] = Liveness.RUNNING
    world.listen(worker.lease)
    ended = lease(world, worker)
    assert (ended.state, ended.end_reason) == (LeaseState.RELEASED, EndReason.HANDED_OFF)
    assert world.job(job).head == worker.parent
    worker.step += 1
    worker.save()
    world.listen(worker.lease)
    assert world.job(job).head_step == 2, "a zombie was heard"
    world.machines.liveness[worker.lease] = Liveness.UNKNOWN
    reconcile(world.ctx)
    with world.ctx.uow() as tx:
        assert all(c.state is CheckpointState.COMMITTED for c in tx.checkpoints.of_job(job))
