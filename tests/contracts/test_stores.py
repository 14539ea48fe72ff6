"""The store contract over every store we ship, and over the fake that stands in for them."""

import json
from pathlib import Path

import pytest

from orchestrator.adapters.stores.google_drive.client import DriveClient
from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.adapters.stores.google_drive.store import DriveStore
from orchestrator.adapters.stores.local import LocalStore
from orchestrator.ports.stores import StoreError
from orchestrator.testing import MemoryStore, StoreContract
from orchestrator.testing.environments import store_env
from tests.emulators.drive import Chaos, Drive
from tests.stores.conftest import AT_ONCE
from worker.shared.resumable_upload import Patience


class TestLocal(StoreContract):
    def make(self, folder):
        return LocalStore(store_env(folder / "store"))

    @pytest.mark.parametrize("key", ["../a", "/etc/passwd", "a/../b", "A/b", "", "a//b", "a/.hidden", "a\0b"])
    def test_keys_that_the_server_would_not_make_are_refused(self, tmp_path, key):
        with pytest.raises(StoreError):
            self.make(tmp_path).path(key)

    def test_what_is_being_written_is_no_key(self, tmp_path):
        """Guard: without `is_key` in `keys`, the sweep stopped at a name that it may not delete."""
        store = self.make(tmp_path)
        self._put(store, tmp_path, "jobs/job-1/f1/a.zip", b"x")
        store.path("jobs/job-1/f1/a.zip").with_name(".incoming-b.zip").write_bytes(b"half")
        assert store.keys("jobs/job-1/f1/") == ["jobs/job-1/f1/a.zip"]

    def test_files_that_go_meanwhile_are_not_counted(self, tmp_path, monkeypatch):
        """Guard: with `is_file` before `stat`, a file deleted in between ended the look with FileNotFoundError."""
        store = self.make(tmp_path)
        both = [store.path("a/b"), store.path("a/c")]
        for path in both:
            self._put(store, tmp_path, f"a/{path.name}", b"x" * 10)
        real = Path.stat

        def going(path, **more):
            found = real(path, **more)
            for each in both if path in both else ():
                each.unlink(missing_ok=True)
            return found

        monkeypatch.setattr(Path, "stat", going)  # a deletion between two calls of the system is no port of ours

        assert store.usage().used == 10

    def test_a_broken_write_leaves_nothing(self, tmp_path):
        def broken():
            yield b"first"
            raise RuntimeError("the line went dead")

        store = self.make(tmp_path)
        with pytest.raises(RuntimeError):
            store.put_stream("a/b", broken())
        assert [p for p in store.folder.rglob("*") if p.is_file()] == []

    def test_signatures_differ_by_key_and_direction(self, tmp_path):
        store = self.make(tmp_path)
        assert len({store.signature(d, k) for d in ("get", "put") for k in ("a/b", "a/c")}) == 4


class TestDrive(StoreContract):
    chaos: Chaos | None = None

    @pytest.fixture(autouse=True)
    def _drive(self, tmp_path_factory):
        self.made = []
        with Drive(tmp_path_factory.mktemp("drive")) as self.drive:
            if self.chaos is not None:
                self.drive.unleash(self.chaos)
            yield
            for store in self.made:
                store.close()

    def make(self, folder):
        login = read_login(json.dumps(self.drive.authorized_user()), self.drive.url)
        client = DriveClient(login, self.drive.url, retries=AT_ONCE)
        patience = Patience(attempts=30, sleep=lambda _: None)
        self.made.append(DriveStore(store_env(), client=client, patience=patience))
        return self.made[-1]


class TestDriveWithFaults(TestDrive):
    """Every third call fails, some of these in truth do not, connections break, files have twins."""

    chaos = Chaos(seed=1, cuts=0.05, truncations=0.02, twins=0.2, lag=2)


class TestMemory(StoreContract):
    def make(self, folder):
        return MemoryStore()
