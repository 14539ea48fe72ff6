"""Fakes of everything outside, and contracts for all drivers and stores. Drivers of others may use both."""

from __future__ import annotations

import hashlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.domain.accounts import Account
from orchestrator.ports.providers import (
    Capabilities,
    Capacity,
    CredentialsRefused,
    Handle,
    LaunchRequest,
    Liveness,
    Observation,
    Provider,
    ProviderError,
    SessionOutput,
)
from orchestrator.ports.stores import ObjectInfo, ObjectMissing, Store, StoreError, Usage
from orchestrator.testing.environments import FakeAccountSettings
from orchestrator.testing.fixed_stores import FixedStores as FixedStores
from worker.shared.messages import Grant, GrantKind


class FakeClock:
    """A clock that stands still until it is moved, in epoch seconds."""

    def __init__(self, now: float = 1_760_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def tick(self, seconds: float) -> float:
        """Move the clock forward. Returns the new time."""
        self._now += seconds
        return self._now

    def set(self, now: float) -> None:
        """Move to this time, also backwards."""
        self._now = now


class FakeProvider(Provider):
    """Implements `ports.Provider` without machines: records launches, and reports of a session what the test sets.

    A launched session is RUNNING until `liveness[lease]` says otherwise. `failure`, while set, is raised by every call
    that would reach the provider. `before[call]` runs first, with that call's arguments: it may wait, record or raise.
    """

    def __init__(
        self, name: str = "fake", *, slots: int = 1, shares_disk: bool = False, this_computer: bool = False
    ) -> None:
        self.capabilities = Capabilities(provider=name, shares_disk=shares_disk, this_computer=this_computer)
        self.rooms = Capacity(slots=slots, session_s=3600.0, memory_bytes=0, start_up_s=1.0)
        self.launched: list[LaunchRequest] = []
        self.liveness: dict[str, Liveness] = {}
        self.details: dict[str, str] = {}
        self.failed: set[str] = set()
        self.outputs: dict[str, SessionOutput] = {}
        self.logs: dict[str, bytes] = {}
        self.stopped: list[str] = []
        self.forgotten: list[str] = []
        self.failure: ProviderError | None = None
        self.before: dict[str, Callable[..., object]] = {}

    def _reach(self, call: str, *arguments: object) -> None:
        if self.failure is not None:
            raise self.failure
        if call in self.before:
            self.before[call](*arguments)

    def end(self, *leases: str) -> None:
        """End the machines of these leases without any message."""
        self.liveness.update(dict.fromkeys(leases, Liveness.ENDED))

    def has_ended(self, lease: str) -> bool:
        """Whether the machine of this lease was launched and has ended."""
        return self.liveness.get(lease) is Liveness.ENDED

    def capacity(self, account: Account) -> Capacity:
        self._reach("capacity", account)
        return self.rooms

    def launch(self, request: LaunchRequest) -> str:
        self._reach("launch", request)
        if request.lease_id not in self.liveness:
            self.launched.append(request)
            self.liveness[request.lease_id] = Liveness.RUNNING
        return f"fake-{request.lease_id}"

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        self._reach("observe", handles)
        return [
            Observation(
                lease_id=h.lease_id,
                liveness=self.liveness.get(h.lease_id, Liveness.ENDED),
                detail=self.details.get(h.lease_id, ""),
                failed=h.lease_id in self.failed,
            )
            for h in handles
        ]

    def stop(self, handle: Handle) -> None:
        self._reach("stop", handle)
        self.stopped.append(handle.lease_id)
        self.liveness[handle.lease_id] = Liveness.ENDED

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        self._reach("collect_outputs", handle)
        return self.outputs.get(handle.lease_id, SessionOutput())

    def clean_up(self, handle: Handle) -> None:
        self._reach("clean_up", handle)
        self.forgotten.append(handle.lease_id)

    def delete_log(self, handle: Handle) -> None:
        self._reach("delete_log", handle)
        self.logs.pop(handle.lease_id, None)

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        self._reach("log", handle, offset, limit)
        return self.logs.get(handle.lease_id, b"")[offset : offset + limit]


class FakePersonalProvider(FakeProvider):
    """A provider of personal accounts with machines that cannot call. `refusal`, while set, rejects credentials."""

    def __init__(self, name: str = "cloud", *, slots: int = 1) -> None:
        super().__init__(name, slots=slots)
        self.capabilities = Capabilities(provider=name, shares_disk=False, same_network=False, personal=True)
        self.refusal, self.account_settings = "", FakeAccountSettings

    def capacity(self, account: Account) -> Capacity:
        self.check(account)
        return super().capacity(account)

    def check(self, account: Account) -> str:
        self._reach("check", account)
        if self.refusal:
            raise CredentialsRefused(self.refusal)
        return f"signed in as {account.config.get('username', 'somebody')}"

    def login(self, account: Account) -> str:
        self.check(account)
        return str(account.config.get("username", "")).lower()


class MemoryStore:
    """Implements `ports.Store` in a dict. `failure`, while set, is raised by every call."""

    name = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failure: StoreError | None = None

    def _reach(self) -> None:
        if self.failure is not None:
            raise self.failure

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        self._reach()
        return Grant(key=key, kind=kind, url=f"memory:{key}")

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        self._reach()
        return Grant(key=key, kind=kind, url=f"memory:{key}", sha256=sha256, size=size)

    def _object(self, key: str) -> bytes:
        self._reach()
        if key not in self.objects:
            raise ObjectMissing(f"The file {key} is not in the store.")
        return self.objects[key]

    def stat(self, key: str) -> ObjectInfo:
        data = self._object(key)
        return ObjectInfo(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def head(self, key: str, size: int) -> bytes:
        return self._object(key)[:size]

    def put(self, key: str, source: Path) -> ObjectInfo:
        self._reach()
        self.objects[key] = source.read_bytes()
        return self.stat(key)

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        yield self._object(key)[start:]

    def delete(self, key: str) -> None:
        self._reach()
        self.objects.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        self._reach()
        return [key for key in self.objects if key.startswith(prefix)]

    def usage(self) -> Usage:
        self._reach()
        return Usage(used=sum(map(len, self.objects.values())), free=None)


class StoreContract(ABC):
    """Tests that every store must pass. A subclass called `Test...` makes an empty store in `make`."""

    @abstractmethod
    def make(self, folder: Path) -> Store:
        """An empty store. It may use `folder`."""

    def _put(self, store: Store, folder: Path, key: str, data: bytes) -> ObjectInfo:
        source = folder / f"source-{secrets.token_hex(4)}"
        source.write_bytes(data)
        return store.put(key, source)

    def test_what_is_put_is_read_back(self, tmp_path: Path) -> None:
        store, data = self.make(tmp_path), secrets.token_bytes(3_000_000)
        info = self._put(store, tmp_path, "jobs/job-1/f1/a.safetensors", data)
        assert info == store.stat("jobs/job-1/f1/a.safetensors")
        assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert b"".join(store.read("jobs/job-1/f1/a.safetensors")) == data

    def test_head_gives_the_first_bytes_and_no_more_than_there_are(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        self._put(store, tmp_path, "a/b", b"0123456789")
        assert store.head("a/b", 4) == b"0123"
        assert store.head("a/b", 100) == b"0123456789"

    def test_an_object_is_read_from_any_byte(self, tmp_path: Path) -> None:
        store, data = self.make(tmp_path), secrets.token_bytes(9_000_000)
        self._put(store, tmp_path, "a/b", data)
        for start in (1, 8_500_000, len(data)):
            assert b"".join(store.read("a/b", start)) == data[start:]

    def test_an_empty_object_is_an_object(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        assert self._put(store, tmp_path, "empty", b"").size == 0
        assert b"".join(store.read("empty")) == b""

    def test_the_same_bytes_may_be_put_again(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        assert self._put(store, tmp_path, "a/b", b"same") == self._put(store, tmp_path, "a/b", b"same")

    def test_what_is_not_there_is_missing(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        with pytest.raises(ObjectMissing):
            store.stat("a/b")
        with pytest.raises(ObjectMissing):
            store.head("a/b", 1)
        with pytest.raises(ObjectMissing):
            list(store.read("a/b"))

    def test_what_is_deleted_is_gone_and_may_be_deleted_again(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        self._put(store, tmp_path, "a/b", b"x")
        store.delete("a/b")
        store.delete("a/b")
        with pytest.raises(ObjectMissing):
            store.stat("a/b")

    def test_a_folder_lists_its_own_keys(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        for key in ("jobs/job-1/f1/a.zip", "jobs/job-1/f1/b.zip", "jobs/job-1/f10/a.zip", "jobs/job-10/f1/a.zip"):
            self._put(store, tmp_path, key, b"x")
        assert sorted(store.keys("jobs/job-1/f1/")) == ["jobs/job-1/f1/a.zip", "jobs/job-1/f1/b.zip"]
        assert store.keys("jobs/job-2/f1/") == []
        store.delete("jobs/job-1/f1/a.zip")
        assert store.keys("jobs/job-1/f1/") == ["jobs/job-1/f1/b.zip"]

    def test_usage_counts_what_lies_there(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        before = store.usage().used
        self._put(store, tmp_path, "a/b", b"x" * 1000)
        assert store.usage().used - before >= 1000

    def test_grants_name_one_object(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        upload = store.grant_upload("a/b", GrantKind.CHECKPOINT, shares_disk=False)
        download = store.grant_download("a/b", GrantKind.CHECKPOINT, sha256="0" * 64, size=3, shares_disk=False)
        assert upload.key == download.key == "a/b"
        assert (download.sha256, download.size) == ("0" * 64, 3)
        assert upload.url or upload.path


class ProviderContract(ABC):
    """Tests for every driver. A subclass called `Test...` makes a driver with sessions that run until stopped."""

    patience_s: float = 20.0

    @abstractmethod
    def make(self, folder: Path) -> Provider:
        """A driver with nothing running. It may use `folder`."""

    @abstractmethod
    def account(self) -> Account:
        """An account that has room for a session."""

    def _request(self) -> LaunchRequest:
        lease = f"lease-{secrets.token_hex(6)}"
        return LaunchRequest(
            lease_id=lease,
            job_id="job-1",
            account=self.account(),
            token="token-of-a-lease",  # noqa: S106  made up
            server_url="http://127.0.0.1:9",
            budget_s=60.0,
        )

    def _await(self, provider: Provider, handle: Handle, liveness: Liveness) -> None:
        until = time.monotonic() + self.patience_s
        while (seen := provider.observe([handle])[0].liveness) is not liveness:
            assert time.monotonic() < until, f"still {seen}, not {liveness}"
            time.sleep(0.02)

    def test_room_is_told(self, tmp_path: Path) -> None:
        room = self.make(tmp_path).capacity(self.account())
        assert room.slots >= 1
        assert room.session_s > 0

    def test_a_session_lives_until_it_is_stopped(self, tmp_path: Path) -> None:
        provider, request = self.make(tmp_path), self._request()
        handle = Handle(lease_id=request.lease_id, account=request.account, external_id=provider.launch(request))
        try:
            self._await(provider, handle, Liveness.RUNNING)
        finally:
            provider.stop(handle)
        self._await(provider, handle, Liveness.ENDED)
        provider.stop(handle)

    def test_the_same_lease_twice_starts_one_session(self, tmp_path: Path) -> None:
        provider, request = self.make(tmp_path), self._request()
        first = provider.launch(request)
        handle = Handle(lease_id=request.lease_id, account=request.account, external_id=first)
        try:
            self._await(provider, handle, Liveness.RUNNING)
            assert provider.launch(request) == first
        finally:
            provider.stop(handle)

    def test_what_was_never_launched_does_not_run(self, tmp_path: Path) -> None:
        provider = self.make(tmp_path)
        handle = Handle(lease_id="lease-unknown", account=self.account(), external_id=None)
        assert provider.observe([handle])[0].liveness is not Liveness.RUNNING
        provider.stop(handle)
        assert provider.collect_outputs(handle) == SessionOutput()
        provider.clean_up(handle)

    def test_an_ended_session_keeps_its_log_until_that_is_erased(self, tmp_path: Path) -> None:
        provider, request = self.make(tmp_path), self._request()
        handle = Handle(lease_id=request.lease_id, account=request.account, external_id=provider.launch(request))
        self._await(provider, handle, Liveness.RUNNING)
        provider.stop(handle)
        self._await(provider, handle, Liveness.ENDED)
        assert provider.collect_outputs(handle) == provider.collect_outputs(handle)
        before = provider.log(handle, 0, 1000)
        provider.clean_up(handle)
        provider.clean_up(handle)
        assert provider.log(handle, 0, 1000) == before
        provider.delete_log(handle)
        provider.delete_log(handle)
        assert not provider.log(handle, 0, 1000)
