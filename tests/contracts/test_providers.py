"""The provider contract over the local driver and that of joined machines (with light processes for workers), Kaggle's
and Colab's against emulators, the fake."""

import subprocess
import sys
import threading

import pytest

from orchestrator.domain.accounts import Account
from orchestrator.providers.joined import JoinedProvider
from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.providers.local import LOG_NAME, LocalProvider
from orchestrator.testing import FakeProvider, ProviderContract
from orchestrator.testing.environments import driver_env
from tests.emulators.colab import Colab
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.providers.kernels import colab_account, colab_provider, kaggle_account
from worker.joined.sessions import Sessions
from worker.shared.joined_messages import MachineOffer, MachineReport

WORKER = """
import json, os, pathlib, sys, time
from worker.shared.process import process_birth
me = os.getpid()
pathlib.Path("pid.json").write_text(json.dumps({"pid": me, "born": process_birth(me)}))
print("up", flush=True)
time.sleep(60)
"""


def _light(home):
    with (home / LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


class _Light(LocalProvider):
    """Starts a process that notes itself, prints a line and waits, in place of a worker with its libraries."""

    def _spawn(self, home, request):
        return _light(home)


def _account(provider):
    return Account(id="account-1", provider=provider, member_id=None, name="pool", config={}, created_at=0.0)


class TestLocal(ProviderContract):
    def make(self, folder):
        return _Light(driver_env(folder / "sessions"))

    def account(self):
        return _account("local")


class _Joined(JoinedProvider):
    """Before each look its machine, which has the real agent's sessions, calls once."""

    def __init__(self, folder):
        super().__init__(driver_env(folder / "server"))
        self._there, self._account = Sessions(folder / "machine", "boot", self._start), _account("joined")
        self._call()

    def _start(self, home, variables):
        child = _light(home)
        threading.Thread(target=child.wait, daemon=True).start()
        return child

    def _call(self):
        for _ in range(3):
            self._there.look()
            offer = MachineOffer(hostname="box", python="3", slots=2, memory_bytes=1)
            report = MachineReport(protocol=1, offer=offer, sessions=tuple(self._there.reports()))
            orders = self.exchange(self._account, report)
            self._there.take(orders)
            for order in orders.start:
                self._there.start(order.ticket, 0, {})
            for lease in orders.stop:
                self._there.signal(lease)

    def observe(self, handles):
        self._call()
        return super().observe(handles)

    def stop(self, handle):
        super().stop(handle)
        self._call()


class TestJoined(ProviderContract):
    def make(self, folder):
        return _Joined(folder)

    def account(self):
        return _account("joined")


class TestFake(ProviderContract):
    def make(self, folder):
        return FakeProvider()

    def account(self):
        return _account("fake")


class TestKaggle(ProviderContract):
    """The real client library, and the real script with the real worker in it, which looks for a server in vain."""

    @pytest.fixture(autouse=True)
    def _emulator(self, tmp_path):
        with KaggleEmulator(tmp_path / "emulator", [Person(name="alice", token="KGAT_alice")]) as emulator:
            self._endpoint = emulator.endpoint
            yield

    def make(self, folder):
        # A worker that is killed before its first message leaves no file to wait for.
        return KaggleProvider(driver_env(folder / "kaggle", endpoint=self._endpoint), fresh_s=0.0, listed_s=0.0)

    def account(self):
        return kaggle_account("alice")


class TestColab(ProviderContract):
    """The real client in its own environment, machines with a real Jupyter server and kernel, a worker of a few
    lines."""

    patience_s = 60.0

    @pytest.fixture(autouse=True)
    def _emulator(self, tmp_path, colab_python):
        with Colab(tmp_path / "emulator", python=colab_python) as self._colab:
            yield
            assert not self._colab.machines, "nothing is left that costs compute units"

    def make(self, folder):
        return colab_provider(self._colab, folder, code="print('up', flush=True); time.sleep(120)")

    def account(self):
        return colab_account(self._colab)
