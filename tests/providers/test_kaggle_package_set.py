"""The packages of a Kaggle account's sessions: made once by a CPU kernel, attached where it is complete, never in the
way."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from orchestrator.providers.kaggle import KaggleProvider, driver, package_set
from orchestrator.providers.kaggle.launch import UNSURE_S, KernelPlace
from orchestrator.providers.kaggle.package_set import AGAIN_AFTER_S, MAX_S, PackageSet, set_slug
from orchestrator.providers.kaggle.records import AccountNotes
from orchestrator.testing.environments import driver_env
from tests.providers.kernels import ended, handle_of, kaggle_account, request, slug, until

MAKES = "open('trainhop-packages.bin', 'wb').write(b'packages')"
WAITS = "import time; time.sleep(120)"
FINDS = """
import os
found = [os.path.join(at, n) for at, _, names in os.walk(keep.parent / "input", followlinks=True) for n in names]
print(*sorted(os.path.relpath(p, keep.parent) for p in found if "packages" in p), flush=True)
"""


@pytest.fixture
def packs(monkeypatch):
    """`packs(code)`: the kernel that prepares the packages is these lines."""

    def carry(code):
        monkeypatch.setattr(package_set, "packages_source", lambda: code)  # the real kernel installs for minutes

    carry(MAKES)
    return carry


def _launch(provider, **config):
    launched = request(kaggle_account("alice", **{"packages": "staged"} | config))
    return handle_of(launched, provider.launch(launched))


def _done(provider, **config):
    """Launch a session and wait for its end; what it said."""
    handle = _launch(provider, **config)
    ended(provider, handle)
    return [line for line in provider.follow(handle) if not line.startswith("trainhop:")]


def _pushes(kaggle, name=None):
    wanted = f"alice/{name or set_slug()}"
    return [s.said for s in kaggle.seen("SaveKernel") if s.said["slug"] == wanted]


def _made(kaggle):
    kernel = kaggle.kernel(set_slug())
    until(lambda: not kernel.is_live)
    return kernel


def test_the_first_session_starts_at_once_and_the_next_one_gets_the_set(provider, kaggle, works, packs):
    """Guard: without `kernels` in the push every session installed its packages anew."""
    works(FINDS)
    assert _done(provider) == [""]
    (pushed,) = _pushes(kaggle)
    assert (pushed["isPrivate"], pushed["enableInternet"], pushed["sessionTimeoutSeconds"]) == (True, True, MAX_S)
    kernel = _made(kaggle)
    assert (kernel.status, kernel.gpu) == ("COMPLETE", False)
    assert _done(provider) == [f"input/notebooks/alice/{set_slug()}/trainhop-packages.bin"]
    assert len(_pushes(kaggle)) == 1
    assert re.fullmatch(r"trainhop-packages-[0-9a-f]{12}", set_slug())


def test_it_takes_no_gpu_session_and_no_gpu_hours(provider, kaggle, works, packs):
    packs(WAITS)
    works("print('up', flush=True); time.sleep(120)")
    for _ in range(2):
        _launch(provider)
    alice = kaggle.world.people["alice"]
    assert (len(kaggle.world.live(alice, gpu=True)), len(kaggle.world.live(alice, gpu=False))) == (2, 1)
    assert provider.capacity(kaggle_account("alice")).slots == 2


def test_it_takes_one_of_the_cpu_sessions_while_it_runs(provider, kaggle, works, packs):
    """Guard: without `_prepares` in `_room` the fifth session was refused at its push."""
    works("print('done', flush=True)")
    packs(WAITS)
    assert provider.capacity(kaggle_account("alice", accelerator="none")).slots == 5
    _launch(provider, accelerator="none")
    assert provider.capacity(kaggle_account("alice", accelerator="none")).slots == 4
    kaggle.kill(set_slug())
    _made(kaggle)
    _launch(provider, accelerator="none")
    assert provider.capacity(kaggle_account("alice", accelerator="none")).slots == 5


REFUSALS = [
    {"status": 200, "body": {"error": "Maximum batch CPU session count of 5 reached."}},
    {"status": 429, "reason": "Too many requests"},
    {"status": 403, "reason": "Permission 'kernelSessions.enableInternet' was denied"},
    {"status": 503, "body": "<html>busy</html>"},
    {"cut": True},
]


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refused_push_fails_no_launch_and_is_tried_later(provider, kaggle, works, packs, clock, fault):
    """Guard: without the `except` in `prepare` a session that had been started counted as refused."""
    works(FINDS)
    rule = kaggle.rules.add("SaveKernel", **fault, skip=1)
    assert _done(provider) == [""]
    assert rule.seen == 1
    assert _done(provider) == [""]
    assert not _pushes(kaggle), "not yet: its answer may only have been lost"
    clock.tick(UNSURE_S)
    assert _done(provider) == [""]
    assert _made(kaggle).status == "COMPLETE"


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429, "reason": "slow"}, {"cut": True}])
def test_a_state_that_cannot_be_told_fails_no_launch(provider, kaggle, works, packs, fault):
    """Guard: without the `except` in `found` no session was started."""
    works(FINDS)
    kaggle.rules.add("GetKernelSessionStatus", **fault, skip=1)  # the first question is whether the session exists
    assert _done(provider) == [""]


def test_two_launches_at_once_start_it_once(provider, kaggle, works, packs):
    """Guard: noted only after its push, a second launch meanwhile started it again beside the first."""
    works("print('done', flush=True)")
    rule = kaggle.rules.add("SaveKernel", skip=1, hold=threading.Event())
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_launch, provider)
        until(lambda: rule.seen)
        _done(provider)
        rule.hold.set()
        ended(provider, first.result())
    assert len(_pushes(kaggle)) == 1


def test_one_that_failed_is_told_and_started_anew_on_another_day(provider, kaggle, works, packs, clock):
    """Guard: without the wait every launch started it again."""
    works("print('done', flush=True)")
    packs("print('trainhop: cannot start: the index does not answer', flush=True); raise SystemExit(1)")
    _done(provider)
    assert _made(kaggle).status == "ERROR"
    clock.tick(AGAIN_AFTER_S - 1)
    with capture_logs() as logs:
        _done(provider)
        _done(provider)
    assert [entry["why"] for entry in logs] == ["cannot start: the index does not answer"]
    assert len(_pushes(kaggle)) == 1
    clock.tick(1)
    packs(MAKES)
    _done(provider)
    assert _made(kaggle).status == "COMPLETE"


def test_one_that_hangs_is_replaced_on_another_day(provider, kaggle, works, packs, clock):
    works("print('done', flush=True)")
    packs(WAITS)
    _done(provider)
    first = kaggle.kernel(set_slug())
    clock.tick(AGAIN_AFTER_S)
    packs(MAKES)
    _done(provider)
    assert first.deleted
    assert _made(kaggle).status == "COMPLETE"


def test_another_servers_kernel_at_work_is_left_alone(provider, kaggle, works, packs, tmp_path):
    works("print('done', flush=True)")
    packs(WAITS)
    other = KaggleProvider(driver_env(tmp_path / "other", endpoint=kaggle.endpoint), fresh_s=0.0)
    _done(other)
    _done(provider)
    assert len(_pushes(kaggle)) == 1


def test_an_old_set_is_deleted_once_the_new_one_is_complete(provider, kaggle, works, packs, monkeypatch):
    """Guard: without `_clear_old` the kernel of every release stayed on the account."""
    works(FINDS)
    _done(provider)
    old = _made(kaggle)
    name = "trainhop-packages-0123456789ab"
    monkeypatch.setattr(package_set, "set_slug", lambda: name)  # only another release has another set

    monkeypatch.setattr(driver, "set_slug", lambda: name)  # the same name, where the driver has imported it

    _done(provider)
    new = kaggle.kernel("trainhop-packages-0123456789ab")
    until(lambda: not new.is_live)
    assert not old.deleted
    kaggle.rules.add("DeleteKernel", status=503)
    assert _done(provider) == ["input/notebooks/alice/trainhop-packages-0123456789ab/trainhop-packages.bin"]
    assert not old.deleted
    _done(provider)
    assert old.deleted
    assert not new.deleted


@pytest.mark.parametrize("stored", [True, False])
def test_a_set_that_was_deleted_meanwhile_fails_no_launch(provider, kaggle, works, packs, stored):
    """Whether Kaggle stores such a push is not known: one session is started in both cases.

    Guard: without the second push none was, and without the look for the first one there were two.
    """
    works(FINDS)
    _done(provider)
    _made(kaggle)
    body = {"ref": "", "invalidKernelSources": [f"alice/{set_slug()}"]}
    kaggle.rules.add("SaveKernel", status=200, body=body, done=stored)
    handle = _launch(provider)
    assert ended(provider, handle).detail == ""
    (pushed,) = _pushes(kaggle, slug(handle))
    assert ("kernelDataSources" in pushed) is stored


def test_the_emulator_does_not_know_a_kernel_that_is_not_there(provider, kaggle, works, packs):
    works(FINDS)
    _done(provider)
    _made(kaggle)
    kaggle.rules.add("GetKernelSessionStatus", status=200, body={"status": "COMPLETE"}, skip=1)
    kaggle.sessions.delete(kaggle.world.kernels.pop(("alice", set_slug())))
    assert _done(provider) == [""]


def test_an_account_may_have_every_session_install_its_packages(provider, kaggle, works, packs):
    works(FINDS)
    assert _done(provider, packages="each") == [""]
    assert not _pushes(kaggle)


class _Slow(AccountNotes):
    """Notes that let somebody else in between reading and writing, if the lock lets them."""

    def __init__(self, folder, on_read):
        super().__init__(folder)
        self._on_read = [on_read]

    def read(self):
        noted = super().read()
        if self._on_read:
            self._on_read.pop()()
        return noted


def test_of_two_that_look_at_once_one_is_told_to_start_it(tmp_path):
    """Guard: without the lock in `_is_due` both had read before either had written, and the kernel was started
    twice."""
    place = cast("KernelPlace", SimpleNamespace(slug="a-set"))
    with ThreadPoolExecutor(1) as pool:
        others = []

        def let_in():
            others.append(pool.submit(looks._is_due, None))
            wait(others, 0.3)  # with the lock it cannot be done yet

        looks = PackageSet(place=place, notes=_Slow(tmp_path, let_in), now=1_000_000.0)
        assert looks._is_due(None) is True
        assert others[0].result() is False
