"""Ending a Kaggle session: cancelled so that its files stay, deleted only where no cancel helps."""

import re

import pytest

from orchestrator.ports.providers import Liveness, ProviderUnavailable, SessionOutput
from orchestrator.providers.kaggle.stopping import CANCELLED, OBEYED_WITHIN_S, SAVING_S, session_id
from tests.providers.kernels import ended, handle_of, kaggle_account, request, slug, until

KEEPS = """
(keep / "outbox.jsonl").write_text('{"kind": "report"}\\n')
(keep / "jobs__job-1__f2__bb.safetensors").write_bytes(b"kept")
print("up", flush=True)
"""
WAITS = KEEPS + "time.sleep(120)"


@pytest.fixture
def running(provider, kaggle, works):
    """`running(code)`: a handle of a session that has printed `up`, and its kernel."""

    def run(code=WAITS, **config):
        works(code)
        launched = request(kaggle_account("alice", **config))
        handle = handle_of(launched, provider.launch(launched))
        until(lambda: "up" in provider.log(handle, 0, 10_000).decode())
        return handle, kaggle.kernel(slug(handle))

    return run


def _reserved_s(kaggle):
    return kaggle.world.reserved_s(kaggle.world.people["alice"])


def test_a_session_that_is_stopped_keeps_its_files_until_it_is_forgotten(provider, kaggle, running):
    """Guard: with a delete for a stop the checkpoint that the session kept was gone with its kernel."""
    handle, kernel = running()
    provider.stop(handle)
    assert ended(provider, handle).detail == CANCELLED
    assert (kernel.status, kernel.deleted) == ("CANCEL_ACKNOWLEDGED", False)
    assert [path.read_bytes() for path in provider.collect_outputs(handle).files.values()] == [b"kept"]
    assert _reserved_s(kaggle) == 0
    provider.clean_up(handle)
    assert kernel.deleted
    assert [s.said for s in kaggle.seen("CancelKernelSession")] == [{"kernelSessionId": kernel.session}]


def test_one_that_hangs_in_running_is_cancelled_and_its_files_collected(provider, kaggle, running):
    """Guard: without the cancel it would go on taking up a session and GPU hours, or lose its files to a delete."""
    handle, kernel = running(KEEPS)
    kernel.stuck = True
    until(lambda: kernel.pid is None)
    assert provider.observe([handle])[0].liveness is Liveness.RUNNING
    assert _reserved_s(kaggle) > 0
    provider.stop(handle)
    ended(provider, handle)
    assert len(provider.collect_outputs(handle).files) == 1
    assert _reserved_s(kaggle) == 0


def test_one_that_obeys_no_cancel_is_deleted_after_its_words_are_kept(provider, kaggle, running, clock):
    """Guard: without a limit for the cancel it would go on taking up a session and GPU hours."""
    handle, kernel = running()
    kernel.ignores_cancel = True
    for wait_s in (0.0, OBEYED_WITHIN_S - 1.0):
        clock.tick(wait_s)
        provider.stop(handle)
        assert provider.observe([handle])[0].liveness is Liveness.RUNNING
    assert len(kaggle.seen("CancelKernelSession")) == 1
    clock.tick(1.0)
    provider.stop(handle)
    seen = provider.observe([handle])[0]
    assert (seen.liveness, seen.detail) == (
        Liveness.ENDED,
        "stopped by deleting its kernel (Kaggle did not cancel it within 5 minutes)",
    )
    assert kernel.deleted
    assert "up" in list(provider.follow(handle))
    assert b"up" in provider.log(handle, 0, 1000)


def test_a_cancelled_session_is_given_time_to_save(provider, kaggle, running, clock):
    """Guard: with one limit for all it was deleted after five minutes, in the middle of saving its checkpoint."""
    handle, kernel = running()
    kaggle.sessions.save_gate.clear()
    provider.stop(handle)
    until(lambda: kernel.pid is None)
    for wait_s in (0.0, OBEYED_WITHIN_S):
        clock.tick(wait_s)
        provider.stop(handle)
        assert (kernel.said_status, kernel.deleted) == ("CANCEL_REQUESTED", False)
    clock.tick(SAVING_S)
    provider.stop(handle)
    assert kernel.deleted


def test_a_clock_that_was_set_back_waits_for_no_cancel(provider, running, clock):
    """Guard: without the look at the start of the wait a clock set back by three days made it wait for three days."""
    handle, kernel = running()
    kernel.ignores_cancel = True
    provider.stop(handle)
    clock.tick(-3 * 86_400)
    provider.stop(handle)
    assert kernel.deleted


def test_a_session_in_the_queue_is_deleted(provider, kaggle, works):
    works(WAITS)
    kaggle.sessions.open_gate.clear()
    launched = request(kaggle_account("alice"))
    handle = handle_of(launched, provider.launch(launched))
    kernel = kaggle.kernel(slug(handle))
    provider.stop(handle)
    assert provider.observe([handle])[0].detail == "stopped by deleting its kernel (it had not started)"
    assert kernel.deleted
    assert not kaggle.seen("CancelKernelSession")


@pytest.mark.parametrize("said", ["", "trainhop: kaggle session 1", "trainhop: kaggle session 123456789012345678901\n"])
def test_a_session_whose_number_cannot_be_learnt_is_deleted(provider, kaggle, works, said):
    """Without its line, with one that broke off, and with one that no number of Kaggle's is as long as."""
    works(f"sys.stdout.write({said!r}); sys.stdout.flush(); time.sleep(120)")
    kaggle.sessions.environment["KAGGLE_CONTAINER_NAME"] = "a-container"
    launched = request(kaggle_account("alice"))
    handle = handle_of(launched, provider.launch(launched))
    kernel = kaggle.kernel(slug(handle))
    until(lambda: kernel.status == "RUNNING")
    provider.stop(handle)
    assert "has no session number" in provider.observe([handle])[0].detail
    assert kernel.deleted


def test_a_later_line_of_a_log_names_no_other_session(provider, kaggle, running):
    """Guard: with the last such line in place of the first, a text in the training data chose whose session ends."""
    handle, kernel = running("print('trainhop: kaggle session 4711', flush=True)\n" + WAITS)
    assert session_id(provider._notebook.of(handle.lease_id)) == kernel.session


@pytest.mark.parametrize("number", ["id", "version"])
def test_the_emulator_cancels_by_the_sessions_own_number_alone(provider, kaggle, running, number):
    _, kernel = running()
    connection = provider._access.connect(kaggle_account("alice"))
    with pytest.raises(ProviderUnavailable, match=re.escape("Permission 'kernelSessions.cancel' was denied")):
        connection.cancel(getattr(kernel, number))
    with pytest.raises(ProviderUnavailable, match="cancel"):
        provider._access.connect(kaggle_account("bob")).cancel(kernel.session)
    assert kernel.status == "RUNNING"


REFUSALS = [
    {"status": 403, "reason": "Permission 'kernelSessions.cancel' was denied"},
    {"status": 200, "body": {"errorMessage": "Permission 'kernelSessions.cancel' was denied"}},
]


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refused_cancel_is_said_and_the_kernel_deleted(provider, kaggle, running, fault):
    """Guard: taken for a cancel under way, a refused one left the session running."""
    handle, kernel = running()
    kaggle.rules.add("CancelKernelSession", **fault)
    provider.stop(handle)
    assert provider.observe([handle])[0].detail == (
        "stopped by deleting its kernel "
        "(Kaggle refused to cancel its session: Permission 'kernelSessions.cancel' was denied)"
    )
    assert kernel.deleted


def test_a_cancel_refused_because_the_run_is_over_deletes_nothing(provider, kaggle, running):
    """Guard: without a second look at the state the files of a session that had just ended were deleted."""
    handle, kernel = running(KEEPS)
    until(lambda: kernel.status == "COMPLETE")
    kaggle.rules.add("GetKernelSessionStatus", status=200, body={"status": "RUNNING"})
    provider.stop(handle)
    assert not kernel.deleted
    assert len(provider.collect_outputs(handle).files) == 1


@pytest.mark.parametrize("fault", [{"cut": True}, {"status": 503}, {"status": 429, "reason": "Too many requests"}])
def test_a_cancel_that_is_not_answered_is_tried_again(provider, kaggle, running, fault):
    """Guard: taken for a refusal it would have deleted the kernel."""
    handle, kernel = running()
    kaggle.rules.add("CancelKernelSession", **fault)
    with pytest.raises(ProviderUnavailable):
        provider.stop(handle)
    assert not kernel.deleted
    provider.stop(handle)
    assert ended(provider, handle).detail == CANCELLED


def test_a_cancel_whose_answer_was_lost_is_not_sent_twice(provider, kaggle, running):
    """Guard: without the look at CANCEL_REQUESTED the second one would be refused, and the kernel deleted."""
    handle, kernel = running()
    kaggle.sessions.save_gate.clear()
    kaggle.rules.add("CancelKernelSession", done=True, cut=True)
    with pytest.raises(ProviderUnavailable):
        provider.stop(handle)
    provider.stop(handle)
    assert len(kaggle.seen("CancelKernelSession")) == 1
    kaggle.sessions.save_gate.set()
    assert ended(provider, handle).detail == CANCELLED
    assert not kernel.deleted


def test_a_delete_that_is_not_obeyed_is_said(provider, kaggle, running):
    handle, _ = running()
    kaggle.rules.add("CancelKernelSession", **REFUSALS[0])
    kaggle.rules.add("DeleteKernel", status=200, body={})
    provider.stop(handle)
    assert "still reserves" in provider.observe([handle])[0].detail


def test_a_session_that_was_stopped_twice_is_over_once(provider, kaggle, running):
    handle, _ = running()
    provider.stop(handle)
    ended(provider, handle)
    provider.stop(handle)
    provider.clean_up(handle)
    provider.stop(handle)
    assert provider.collect_outputs(handle) == SessionOutput()
    assert len(kaggle.seen("CancelKernelSession")) == 1
