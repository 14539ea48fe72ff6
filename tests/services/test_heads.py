"""A damaged head, one that cannot be loaded, and files that must not become one; on both databases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.lifecycle import CheckpointState, JobState
from orchestrator.services.worker_messages import receive
from tests.helpers.world import Worker, World
from tests.services.test_clones import running, saves
from worker.shared import causes
from worker.shared.messages import Failure, Finish

LONG = 4_000
"""Longer than any pause between tries."""


def cannot_load(world: World, worker: Worker, **changes: Any) -> None:
    """The worker's last word: its checkpoint does not load."""
    assert worker.assignment is not None
    assert worker.assignment.resume is not None
    said: dict[str, Any] = {
        "message": "it has NaN",
        "permanent": False,
        "bad_checkpoint": worker.assignment.resume.sha256,
    }
    failure = Failure(**said | changes)
    receive(world.ctx, Finish(lease=worker.lease, fence=worker.assignment.fence, seq=99, step=0, failure=failure))
    world.machines.end(worker.lease)
    world.clock.tick(LONG)


def kept_steps(world: World, job: str) -> list[int]:
    with world.ctx.uow() as tx:
        return [c.step for c in tx.checkpoints.of_job(job, CheckpointState.COMMITTED)]


def reasons(world: World, job: str, kind: str) -> list[str]:
    with world.ctx.uow() as tx:
        return [event.reason for event in tx.events.of_kind(job, kind)]


def handed_off(world: World, *steps: int) -> None:
    """A session that saves these steps and hands off."""
    worker = running(world)
    saves(worker, *steps)
    worker.release()
    world.machines.end(worker.lease)


def test_a_head_that_two_sessions_cannot_load_gives_way_to_its_parent(world: World) -> None:
    """Guards: without `not_loaded` the head stayed until the job failed; with `keep: 1` taken by the letter there was
    no parent left."""
    job = world.submit("alice", 9, checkpoint={"keep": 1})
    handed_off(world, 1, 2, 3)
    assert kept_steps(world, job) == [2, 3]
    first = running(world)
    cannot_load(world, first)
    assert (world.job(job).head_step, world.job(job).state) == (3, JobState.QUEUED)
    cannot_load(world, running(world))
    assert (world.job(job).head_step, world.job(job).state) == (2, JobState.QUEUED)
    said = "the checkpoint of step 3 could not be loaded by 2 sessions, resuming from step 2"
    assert reasons(world, job, "checkpoint.corrupt") == [said]
    assert any(said in reason for reason in reasons(world, job, "job.queued"))
    last = running(world)
    assert last.step == 2
    saves(last, 3, 9)
    last.finish()
    assert world.job(job).state is JobState.SUCCEEDED


def test_what_a_session_has_loaded_is_kept_until_the_next_is_loaded(world: World) -> None:
    """Everything that one broken session saved may be bad. Guard: without `loaded` in `prune_unneeded` the job began
    again from the start; without the abandoned chain its next commit broke the index that forbids forks."""
    job = world.submit("alice", 9, checkpoint={"keep": 1})
    handed_off(world, 2)
    handed_off(world, 4, 5, 6)
    assert kept_steps(world, job) == [2, 5, 6]
    for _ in range(4):
        cannot_load(world, running(world))
    last = running(world)
    assert last.step == 2
    saves(last, 4, 5, 6, 9)
    last.finish()
    assert world.job(job).state is JobState.SUCCEEDED
    assert kept_steps(world, job) == [9]


@pytest.mark.parametrize("changes", [{"bad_checkpoint": None}, {"cause": causes.DATA}, {"bad_checkpoint": "0" * 64}])
def test_what_did_not_arrive_is_not_given_up(world: World, changes: dict[str, Any]) -> None:
    """Guard: without the look at `cause` a proxy that damages downloads cost a job all its checkpoints."""
    job = world.submit("alice", 9)
    handed_off(world, 1, 2)
    for _ in range(2):
        cannot_load(world, running(world), **changes)
    assert (world.job(job).head_step, kept_steps(world, job)) == (2, [1, 2])


def _header(edit: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def edited(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        edit(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[end:]

    return edited


def _twice(data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end].rstrip().removesuffix(b"}") + b',"adapter.w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    return len(text).to_bytes(8, "little") + text + data[end:]


BROKEN = {
    "cut": lambda data: data[:-4],
    "cut in the header": lambda data: data[:20],
    "too long": lambda data: data + b"0000",
    "twice": _twice,
    "shape": _header(lambda h: h["adapter.w"].update(shape=[2**40])),
    "wraps": _header(lambda h: h["adapter.w"].update(shape=[2**32, 2**32])),
    "offsets": _header(lambda h: h["adapter.w"].update(data_offsets=[0, 8], shape=[2])),
    "overlap": _header(lambda h: h.update(x={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})),
    "dtype": _header(lambda h: h["adapter.w"].update(dtype="I32")),
    "another shape": _header(lambda h: h["adapter.w"].update(shape=[2, 2])),
    "another name": _header(lambda h: h.update(y=h.pop("adapter.w"))),
    "one more": _header(lambda h: h.update(z={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
}


@pytest.mark.parametrize("how", list(BROKEN))
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_file_that_cannot_load_never_becomes_the_head(world: World, how: str) -> None:
    """Its hash and size are right. Guards: without `read_header` all but the last four were committed; those four were
    without `check_continues`."""
    world.submit("alice", 9)
    worker = running(world)
    saves(worker, 1)
    worker.step = 2
    offer = worker.write(worker.manifest())
    path = world.store.path(offer.key)
    data = BROKEN[how](path.read_bytes())
    path.write_bytes(data)
    reply = receive(world.ctx, offer.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}))
    assert not reply.committed
    assert "checkpoint" in reply.refusal
    assert world.job(offer.manifest.job).head_step == 1


def test_a_job_whose_only_checkpoint_is_damaged_starts_again_and_ends(world: World) -> None:
    """Guard: without `_give_up_the_chain` the first commit of the new start broke the index that forbids forks, for
    ever."""
    job = world.submit("alice", 3, checkpoint={"keep": 1})
    handed_off(world, 1, 2)
    for _ in range(2):
        world.store.path(world.head(job).key).write_bytes(b"damaged")
        cannot_load(world, running(world))
    assert (world.job(job).head, world.job(job).state) == (None, JobState.QUEUED)
    world.clock.tick(4_000)
    again = running(world)
    assert again.step == 0
    saves(again, 1, 2, 3)
    again.finish()
    assert world.job(job).state is JobState.SUCCEEDED
