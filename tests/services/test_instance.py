"""Which data folder and database belong to a server: copies, missing parts, second servers, a locked database."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import make_url

from orchestrator.adapters import data_folder
from orchestrator.adapters.database.guard import LOCK_KEY, guard_database, shown
from orchestrator.adapters.database.unit_of_work import make_engine, make_unit_of_work
from orchestrator.adapters.instance import ID_FILE, InstanceFolder, Origin
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Member, Role
from orchestrator.domain.errors import ConflictError, UnavailableError
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.http.write_batcher import WriteBatcher
from orchestrator.ports.providers import Handle, Liveness
from orchestrator.providers.local import LocalProvider
from orchestrator.services.copied_folder import leave_to_the_original
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.testing.environments import driver_env
from tests.helpers import async_story
from tests.helpers.waiting import wait_for
from tests.helpers.world import World
from tests.providers.test_local import POOL
from worker.shared.process import INSTANCE, process_birth


@pytest.fixture
def start(tmp_path, sqlite_template):
    """Starts and stops a server on a folder of `tmp_path`, whose database is migrated in advance to save time."""

    def start(name: str = "data", *, origin: Origin | None = None, url: str | None = None) -> str | None:
        folder = tmp_path / name
        if url is None and not folder.exists():
            folder.mkdir()
            shutil.copyfile(sqlite_template, folder / "trainhop.db")
        build(Settings(data_dir=folder, database_url=url, offline=True), origin=origin).close()
        return InstanceFolder(folder).id

    return start


def test_a_copied_folder_asks_what_it_is(tmp_path: Path, start) -> None:
    """Guard: without `refuse_copy` the copy starts and takes the original's sessions for its own."""
    first = start()
    assert first
    assert start() == first
    (tmp_path / "data").rename(tmp_path / "renamed")
    assert start("renamed") == first, "a folder that was only renamed is the same"
    shutil.copytree(tmp_path / "renamed", tmp_path / "copy")
    with pytest.raises(ConflictError, match=r"was copied from .*renamed.*--moved.*--as-copy"):
        start("copy")
    second = start("copy", origin=Origin.COPY)
    assert second not in (None, first)
    assert start("copy") == second
    assert start("renamed") == first
    shutil.copytree(tmp_path / "renamed", tmp_path / "restored")
    assert start("restored", origin=Origin.MOVED) == first
    assert start("restored") == first


def test_neither_inode_nor_time_of_change_alone_tells_a_copy(tmp_path: Path, start) -> None:
    """`chown` and `chmod` change the time of the last change, and some network folders change the inode."""
    first = start()
    (tmp_path / "data" / ID_FILE).chmod(0o640)
    assert start() == first


def test_an_earlier_folder_gets_an_id_without_a_word(tmp_path: Path, start) -> None:
    first = start()
    for name in (ID_FILE, "instance.json"):
        (tmp_path / "data" / name).unlink()
    assert start() == first, "the database knows it"
    database = sqlite3.connect(tmp_path / "data" / "trainhop.db")
    with database:
        database.execute("DELETE FROM instance")
    database.close()
    (tmp_path / "data" / ID_FILE).unlink()
    assert start() not in (None, first)


def test_a_folder_and_a_database_of_two_instances_are_refused(tmp_path: Path, start) -> None:
    start("one")
    start("two")
    for file in (tmp_path / "two").glob("trainhop.db*"):
        shutil.copyfile(file, tmp_path / "one" / file.name)
    with pytest.raises(ConflictError, match="belongs to another data folder"):
        start("one")


def test_a_used_folder_with_an_empty_database_is_refused(tmp_path: Path, start) -> None:
    """Guard: without `refuse_missing_parts` each of these is a first start, with nobody's jobs."""
    start()
    database = tmp_path / "data" / "trainhop.db"
    database.rename(tmp_path / "aside")
    for _ in range(2):
        with pytest.raises(ConflictError, match=r"trainhop\.db is missing or empty.*Put the database back"):
            start()
    (tmp_path / "data" / ID_FILE).unlink()
    (tmp_path / "data" / "store" / "datasets").mkdir()
    (tmp_path / "data" / "store" / "datasets" / "abc").write_text("a row")
    with pytest.raises(ConflictError, match="missing or empty"):
        start()
    (tmp_path / "aside").rename(database)
    assert start()


def test_a_used_folder_without_its_store_is_refused(tmp_path: Path, start) -> None:
    start()
    shutil.rmtree(tmp_path / "data" / "store")
    with pytest.raises(ConflictError, match=r"data/store .*is missing. Put it back"):
        start()


def test_a_missing_key_beside_sealed_credentials_is_refused(tmp_path: Path, start) -> None:
    """Guard: without the refusal a new key is made, and every credential is lost one error at a time."""
    start()
    (tmp_path / "data" / "vault.key").unlink()
    start()
    (tmp_path / "data" / "vault.key").unlink()
    database = sqlite3.connect(tmp_path / "data" / "trainhop.db")
    with database:
        database.execute("UPDATE members SET hub_token = 'sealed'")
    database.close()
    with pytest.raises(ConflictError, match=r"vault\.key is missing, and 1 stored credentials") as refused:
        start()
    assert not (tmp_path / "data" / "vault.key").exists()
    subprocess.run(str(refused.value).partition("again: ")[2], shell=True, check=True)
    start()


def _add_member(uow, name: str) -> None:
    with uow() as tx:
        tx.members.add(Member(id=name, name=name, role=Role.MEMBER, created_at=0.0))


def test_a_database_that_was_moved_away_refuses_writes(sqlite_app: App, tmp_path: Path) -> None:
    """Guard: without the check before each commit SQLite writes on into the renamed file."""
    path = tmp_path / "trainhop.db"
    _add_member(sqlite_app.context.uow, "ann")
    path.rename(path.with_name("aside"))
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"^The server's database file was moved.*Put the same file back"):
            _add_member(sqlite_app.context.uow, "bob")
    assert not path.exists()
    path.with_name("aside").rename(path)
    _add_member(sqlite_app.context.uow, "cid")
    with sqlite_app.context.uow() as tx:
        assert {m.name for m in tx.members.all()} >= {"ann", "cid"}
        assert tx.members.get_by_name("bob") is None


def test_a_second_server_on_one_database_is_refused(database_url: str, make_server, tmp_path: Path) -> None:
    """Guard: without `guard_database` two folders on one database lease one slot twice."""
    make_server(database_url)
    engine = make_engine(database_url)
    with pytest.raises(ConflictError, match="Another server already uses the database") as refused:
        guard_database(engine, patience_s=0.05)
    engine.dispose()
    assert "TRAINHOP_DATABASE_URL" in str(refused.value)
    with pytest.raises(ConflictError, match="Another server already uses"):
        build(Settings(data_dir=tmp_path / "other", database_url=database_url, offline=True))


@pytest.mark.postgres
def test_a_lost_lock_refuses_writes_until_it_is_back(postgres_cluster) -> None:
    """Guard: without the thread that watches the connection this server wrote on while another one had the lock."""
    url = postgres_cluster.lend()
    engine = make_engine(url)
    guard = guard_database(engine, patience_s=0.05, retry_s=0.05)
    uow = make_unit_of_work(engine, guard.check)
    _add_member(uow, "ann")
    other = make_engine(url)
    with other.connect() as rival:
        holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        pid = rival.exec_driver_sql(holder).scalar()
        rival.exec_driver_sql("SELECT pg_terminate_backend(%s)", (pid,))
        rival.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK_KEY})")
        wait_for(lambda: _is_refused(guard.check), "the lost lock")
        with pytest.raises(UnavailableError, match="lost its lock"):
            _add_member(uow, "bob")
    other.dispose()
    wait_for(lambda: not _is_refused(guard.check), "the lock again")
    _add_member(uow, "cid")
    guard.close()
    engine.dispose()
    postgres_cluster.take_back(url)


def _is_refused(check) -> bool:
    try:
        check()
    except UnavailableError:
        return True
    return False


@pytest.mark.parametrize(
    ("variable", "folder", "is_stopped"),
    [("mine", "home", True), ("other", "home", False), ("", "home", True), ("mine", "elsewhere", False)],
)
def test_only_an_own_process_is_stopped(tmp_path: Path, variable: str, folder: str, is_stopped: bool) -> None:
    """`pid.json` of a copied folder names the original's worker.

    Guard: without `_is_ours` the copy killed it. Workers of earlier versions have no variable.
    """
    home = tmp_path / "sessions" / "lease-1"
    home.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    local = LocalProvider(driver_env(home.parent, instance_id="mine"))
    code = "import sys; print(flush=True); sys.stdin.read()"
    works_in = home if folder == "home" else tmp_path / folder
    environment = os.environ | ({INSTANCE: variable} if variable else {})
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=works_in,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # before, the kernel may not tell its variables yet
        note = {"pid": process.pid, "born": process_birth(process.pid)}
        (home / "pid.json").write_text(json.dumps(note))
        handle = Handle(lease_id="lease-1", account=POOL, external_id=str(process.pid))
        (seen,) = local.observe([handle])
        assert (seen.liveness is Liveness.RUNNING) is is_stopped
        local.stop(handle)
        if not is_stopped:
            assert process.poll() is None
        process.communicate()
    assert process.returncode == (-signal.SIGKILL if is_stopped else 0)


@pytest.mark.parametrize("is_served", [True, False])
def test_a_worker_of_the_folder_that_was_restored_is_known(tmp_path: Path, is_served: bool) -> None:
    """It trains on in the original folder, which has no server any more. Its messages are there.

    Guard: without `_is_left` it counts as ended, and a second one is started. Without the look at the lock, a copy of a
    folder whose server runs stops that server's worker.
    """
    home, original = tmp_path / "sessions" / "lease-1", tmp_path / "original" / "sessions" / "lease-1"
    for folder in (home, original):
        folder.mkdir(parents=True)
    (original / "outbox.jsonl").write_text("a message\n")
    local = LocalProvider(driver_env(home.parent, instance_id="mine"))
    unlock = data_folder.lock(tmp_path / "original") if is_served else lambda: None
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=original,
        env=os.environ | {INSTANCE: "mine"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        note = json.dumps({"pid": process.pid, "born": process_birth(process.pid)})
        for folder in (home, original):
            (folder / "pid.json").write_text(note)
        handle = Handle(lease_id="lease-1", account=POOL, external_id=str(process.pid))
        (seen,) = local.observe([handle])
        assert seen.liveness is (Liveness.ENDED if is_served else Liveness.RUNNING)
        assert local.collect_outputs(handle).messages == (() if is_served else ("a message",))
        process.communicate()
    unlock()


def test_a_copy_leaves_everything_to_the_original(world: World) -> None:
    """Guard: without it the next round stops the original's sessions at their provider and deletes what they left."""
    submitted = [world.submit("alice") for _ in range(3)]
    dispatch(world.ctx)
    world.new_workers()[0].start()
    leave_to_the_original(world.ctx)
    leave_to_the_original(world.ctx)
    for _ in range(3):
        world.clock.tick(10_000)
        reconcile(world.ctx)
        dispatch(world.ctx)
    with world.ctx.uow() as tx:
        assert not tx.leases.live()
    assert {world.job(job).state for job in submitted} == {JobState.PAUSED}
    assert (world.machines.stopped, world.machines.forgotten) == ([], [])
    assert len(world.machines.launched) == 2


class _Locked:
    """Another program that keeps an SQLite file locked."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        self._database.execute("ROLLBACK")
        self._database.close()


def test_writers_of_a_locked_database_fail_together(sqlite_template: Path, tmp_path: Path) -> None:
    """Guard: without `_locked_at` each of eight waits for the lock anew, one after the other."""
    path = tmp_path / "trainhop.db"
    shutil.copyfile(sqlite_template, path)
    engine = make_engine(f"sqlite:///{path}", busy_s=0.4)
    uow = make_unit_of_work(engine)
    _add_member(uow, "ann")
    lock, waited = _Locked(path), []

    def write() -> None:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="keeps the database locked"):
            _add_member(uow, "bob")
        waited.append(time.monotonic() - began)

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(waited) == 8
    assert max(waited) < 1.2
    lock.end()
    _add_member(uow, "cid")
    engine.dispose()


def test_a_batch_on_a_locked_database_waits_once(world: World) -> None:
    """Guard: without `except UnavailableError` in the batcher each of its writes waits alone, one after the other."""
    calls: list[int] = []

    @contextlib.contextmanager
    def refusing():
        calls.append(1)
        raise UnavailableError("locked")
        yield

    batcher = WriteBatcher(dataclasses.replace(world.ctx, uow=refusing))

    async def write_all() -> list[object]:
        writes = [batcher.write(("lease", n), lambda tx: None) for n in range(300)]
        return await asyncio.gather(*writes, return_exceptions=True)

    answers = async_story.run(write_all())
    assert {type(answer) for answer in answers} == {UnavailableError}
    assert len(calls) == 1


def test_a_databases_name_has_no_password() -> None:
    """Guard: without `query={}` a password in the URL's query was logged, and shown to strangers at `/readyz`."""
    url = make_url("postgresql://u:one@host/db?password=two&sslpassword=three")
    assert shown(url) == "postgresql://u:***@host/db"
