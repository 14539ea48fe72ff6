"""The end of a Kaggle session as the server goes through it: nothing is deleted that is still being saved."""

import dataclasses
import shutil

import pytest

from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.providers.kaggle.launch import TIMEOUT_OVER_S
from orchestrator.providers.kaggle.stopping import SAVING_S
from orchestrator.providers.registry import Registry
from orchestrator.services import accounts, jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.leases import lease_prefix
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import receive
from orchestrator.testing.environments import driver_env
from tests.helpers.world import World
from tests.providers.kernels import until
from worker.shared.manifest import Hardware
from worker.shared.messages import Release, Started, StartRequest
from worker.shared.wire import PROTOCOL_VERSION

KEEPS = """
(keep / f"jobs__{given['job']}__f{given['fence']}__0123456789abcdef.safetensors").write_bytes(b"a checkpoint")
last = {"kind": "release", "lease": given["lease"], "fence": given["fence"], "seq": 2, "step": 0, "reason": "deadline"}
(keep / "outbox.jsonl").write_text(json.dumps(last))
"""


@pytest.fixture
def world(sqlite_template, tmp_path, kaggle):
    """A server that nobody can call, and alice's account at Kaggle as its only machine."""
    shutil.copyfile(sqlite_template, tmp_path / "trainhop.db")
    engine = make_engine(f"sqlite:///{tmp_path / 'trainhop.db'}")
    world = World(engine, tmp_path)
    world.machines.rooms = dataclasses.replace(world.machines.rooms, slots=0)
    driver = KaggleProvider(
        driver_env(tmp_path / "kaggle", vault=world.ctx.vault, endpoint=kaggle.endpoint, clock=world.clock), fresh_s=0.0
    )
    world.ctx = dataclasses.replace(world.ctx, providers=Registry.of({"sim": world.machines, "kaggle": driver}))
    signed_in = {"config": {"username": "alice"}, "credentials": "KGAT_alice"}
    accounts.add_account(world.ctx, world.actors["alice"], provider="kaggle", name=None, owner=None, **signed_in)
    yield world
    engine.dispose()


def _being_saved(world, kaggle):
    """A job whose session has begun and whose script is over, while Kaggle still saves what it kept."""
    kaggle.sessions.save_gate.clear()
    job = world.submit("alice")
    assert dispatch(world.ctx) == 1
    (lease,) = world.all_leases()
    (kernel,) = kaggle.world.kernels.values()
    until(lambda: kernel.events and kernel.pid is None)
    begun = StartRequest(protocol=PROTOCOL_VERSION, nonce="n", hardware=Hardware(name="sim"))
    receive(world.ctx, Started(lease=lease.id, fence=lease.fence, seq=1, request=begun))
    return job, lease, kernel


def test_a_session_is_not_deleted_while_kaggle_saves_what_it_kept(world, kaggle, works):
    """Guard: without `saving_s` in `_judge` the kernel was deleted 45 s after its budget, with the checkpoint in it."""
    works(KEEPS)
    job, lease, kernel = _being_saved(world, kaggle)
    for over_s in (46.0, 15 * 60.0, TIMEOUT_OVER_S + SAVING_S):
        world.clock.set(lease.created_at + lease.budget_s + over_s)
        reconcile(world.ctx)
        assert not kernel.deleted
        assert world.job(job).state is JobState.RUNNING
    kaggle.sessions.save_gate.set()
    until(lambda: not kernel.is_live)
    reconcile(world.ctx)
    (lease,) = world.all_leases()
    assert (lease.state, lease.end_reason) == (LeaseState.RELEASED, EndReason.HANDED_OFF)
    assert world.store.stat(f"{lease_prefix(lease)}0123456789abcdef.safetensors").size == len(b"a checkpoint")


def test_a_session_that_hangs_is_cancelled_collected_and_deleted(world, kaggle, works):
    """Its own limit is no guarantee. Guard: with a delete for a stop the checkpoint was gone with its kernel."""
    works(KEEPS)
    _, lease, kernel = _being_saved(world, kaggle)
    kernel.stuck = True
    kaggle.sessions.save_gate.set()
    until(lambda: kernel.status == "COMPLETE")
    world.clock.set(lease.created_at + lease.budget_s + TIMEOUT_OVER_S + SAVING_S + 60.0)
    reconcile(world.ctx)
    until(lambda: kernel.status == "CANCEL_ACKNOWLEDGED")
    reconcile(world.ctx)
    assert world.store.stat(f"{lease_prefix(lease)}0123456789abcdef.safetensors").size == len(b"a checkpoint")
    assert not kernel.deleted
    reconcile(world.ctx)
    assert kernel.deleted
    assert not kaggle.world.reserved_s(kaggle.world.people["alice"])


@pytest.mark.parametrize("obeys", [True, False])
def test_a_session_that_never_comes_to_its_end_is_deleted_all_the_same(world, kaggle, works, obeys):
    works(KEEPS)
    _, lease, kernel = _being_saved(world, kaggle)
    kernel.ignores_cancel = not obeys
    world.clock.set(lease.created_at + lease.budget_s + TIMEOUT_OVER_S + SAVING_S + 60.0)
    reconcile(world.ctx)
    assert not kernel.deleted
    world.clock.tick(SAVING_S)
    reconcile(world.ctx)
    assert kernel.deleted


def test_a_session_that_has_said_goodbye_may_save_first(world, kaggle, works):
    """Guard: without `saving_s` in `_clear_away` it was cancelled 45 s after its last word."""
    works(KEEPS)
    _, lease, kernel = _being_saved(world, kaggle)
    receive(world.ctx, Release(lease=lease.id, fence=lease.fence, seq=2, step=0, reason="deadline"))
    for over_s, asked in ((SAVING_S, 0), (SAVING_S + TIMEOUT_OVER_S + 60.0, 1)):
        world.clock.set(lease.created_at + over_s)
        reconcile(world.ctx)
        assert len(kaggle.seen("CancelKernelSession")) == asked
    kaggle.sessions.save_gate.set()
    until(lambda: not kernel.is_live)
    reconcile(world.ctx)
    assert kernel.deleted


def test_a_session_whose_job_was_cancelled_saves_nothing(world, kaggle, works):
    """Guard: without the look at the cancel in `_clear_away` it went on taking up GPU hours."""
    works(KEEPS)
    job, lease, kernel = _being_saved(world, kaggle)
    jobs.cancel(world.ctx, world.actors["alice"], job)
    receive(world.ctx, Release(lease=lease.id, fence=lease.fence, seq=2, step=0, reason="cancelled"))
    world.clock.tick(46.0)
    reconcile(world.ctx)
    assert kaggle.seen("CancelKernelSession")
    kaggle.sessions.save_gate.set()
    until(lambda: not kernel.is_live)
    reconcile(world.ctx)
    assert kernel.deleted
