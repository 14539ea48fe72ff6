"""Backups of a server that runs, and what a restored one does with sessions that run elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import random
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import select

from orchestrator.adapters.backup_file import ABOUT
from orchestrator.adapters.backups import back_up, restore
from orchestrator.adapters.database.metadata import metadata
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.adapters.instance import ID_FILE, InstanceFolder, Origin
from orchestrator.adapters.stores.deletions import no_deletions
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Member, Role
from orchestrator.domain.errors import ConflictError, InvalidError, TrainhopError, UnavailableError
from orchestrator.domain.lifecycle import JobState, LeaseState
from orchestrator.entrypoints.background.scheduler import FIND_US_S, Ticker
from orchestrator.ports.providers import Liveness
from orchestrator.ports.stores import StoreBusy
from orchestrator.providers.registry import Registry
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import Watch, reconcile
from orchestrator.testing import FakeProvider
from tests.helpers.session_desk import files_of_at_most
from tests.helpers.world import World
from tests.services.test_evaluations import running, trained
from tests.services.test_machine_exports import finish, shown, started


@pytest.fixture
def served(database_url: str, tmp_path: Path) -> Iterator[App]:
    """A running server on both databases, with keys and an id."""
    app = build(Settings(data_dir=tmp_path / "data", database_url=database_url, offline=True, local_slots=0))
    yield app
    app.close()


@pytest.fixture
def world(served: App) -> Iterator[World]:
    """Members, accounts, jobs and machines of that server."""
    engine = make_engine(served.settings.url)
    yield World(engine, served.settings.folder)
    engine.dispose()


@pytest.fixture
def take(served: App, tmp_path: Path) -> Callable[[], Path]:
    """Makes a backup of the running server."""

    def take() -> Path:
        back_up(served.settings.folder, served.settings.url, tmp_path / "backup.tar")
        return tmp_path / "backup.tar"

    return take


def restored(file: Path, folder: Path) -> Settings:
    """A backup restored to SQLite in an empty folder."""
    settings = Settings(data_dir=folder, offline=True, local_slots=0)
    restore(file, folder, settings.url)
    return settings


def start(settings: Settings, world: World) -> App:
    """A server on a restored folder, which sees the same machines and the same time."""
    providers = Registry.of({"sim": world.machines, "local": FakeProvider("local", slots=0)})
    app = build(settings, providers=providers, origin=Origin.MOVED)
    now = world.clock.now()
    app.context = dataclasses.replace(app.context, clock=world.clock, started_at=now, spawn=lambda work: work())
    return app


def _committed(database: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(database)) as found:
        query = "SELECT key, sha256 FROM checkpoints WHERE state = 'committed' AND key != ''"
        return found.execute(query).fetchall() + found.execute("SELECT key, sha256 FROM datasets").fetchall()


def test_a_backup_under_load_misses_nothing(served: App, world: World, tmp_path: Path) -> None:
    """What was acknowledged before a backup began is in it, and so is every file that its database names.

    Guard: without `no_deletions`, checkpoints that were pruned meanwhile are missing.
    """
    acknowledged, stopping = set[str](), threading.Event()
    world.submit("alice", steps=100_000)
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()

    def train() -> None:
        while not stopping.is_set():
            worker.step += 1
            assert worker.save().committed
            acknowledged.add(worker.parent or "")

    def add_members() -> None:
        for number in range(1_000_000):
            if stopping.is_set():
                return
            with world.ctx.uow() as tx:
                tx.members.add(Member(id=f"m{number}", name=f"m{number}", role=Role.MEMBER, created_at=0.0))
            acknowledged.add(f"m{number}")

    threads = [threading.Thread(target=work) for work in (train, add_members)]
    for thread in threads:
        thread.start()
    try:
        for number in range(3):
            before = set(acknowledged)
            written = back_up(served.settings.folder, served.settings.url, tmp_path / "backup.tar")
            assert (written.missing, written.changed) == ([], [])
            copy = restored(tmp_path / "backup.tar", tmp_path / f"copy-{number}").folder
            with closing(sqlite3.connect(copy / "trainhop.db")) as database:
                there = {row[0] for row in database.execute("SELECT id FROM members")}
                there |= {row[0] for row in database.execute("SELECT sha256 FROM checkpoints")}
            assert before <= there
            for key, sha256 in _committed(copy / "trainhop.db"):
                assert hashlib.sha256((copy / "store" / key).read_bytes()).hexdigest() == sha256
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def test_nothing_is_deleted_while_a_backup_reads_the_store(world: World) -> None:
    """A session that ends meanwhile is cleared away afterwards.

    Guard: without `StoreBusy` in `sweep_strays` its stray file stays for ever.
    """
    world.submit("alice")
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    stray = worker.write(worker.manifest(step=1)).key
    worker.release()
    with no_deletions(world.store.folder):
        reconcile(world.ctx)
        with pytest.raises(StoreBusy, match="a backup reads the store"):
            world.store.delete(stray)
        with pytest.raises(StoreBusy, match="another backup"), no_deletions(world.store.folder, patience_s=0.0):
            pass
    assert world.store.path(stray).exists()
    reconcile(world.ctx)
    assert not world.store.path(stray).exists()


def test_a_restored_server_keeps_running_sessions(
    served: App, world: World, take: Callable[[], Path], tmp_path: Path
) -> None:
    """On another computer, with the original gone: no session is given up, and no machine is started twice."""
    submitted = [world.submit("alice"), world.submit("bob")]
    dispatch(world.ctx)
    workers = world.new_workers()
    for worker in workers:
        worker.start()
        worker.step = 1
        assert worker.save().committed
    file = take()
    served.close()
    original = served.settings.folder.rename(tmp_path / "gone")
    settings = restored(file, tmp_path / "new")
    for name in ("secret.key", "vault.key", "admin.token", ID_FILE):
        assert (settings.folder / name).read_bytes() == (original / name).read_bytes()
        assert (settings.folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError, match=r"was copied from .* on .*--moved.*--as-copy"):
        build(settings)
    app = start(settings, world)
    world.ctx, world.store.folder = app.context, settings.folder / "store"
    for _ in range(3):
        reconcile(app.context)
        dispatch(app.context)
        world.clock.tick(30)
        assert [worker.report().action.value for worker in workers] == ["continue", "continue"]
    assert len(world.machines.launched) == 2
    assert (world.machines.stopped, world.machines.forgotten) == ([], [])
    for worker in workers:
        worker.step = 4
        assert worker.save().committed
        worker.finish()
    reconcile(app.context)
    assert {world.job(job).state for job in submitted} == {JobState.SUCCEEDED}
    app.close()


def test_a_copy_does_not_take_over_from_a_running_server(
    served: App, world: World, take: Callable[[], Path], tmp_path: Path
) -> None:
    """Guard: without `refuse_running_original` both servers direct the same sessions."""
    settings = restored(take(), tmp_path / "new")
    with pytest.raises(ConflictError, match=r"copied from .*data, which a server on this computer uses. Stop"):
        start(settings, world)
    served.close()
    start(settings, world).close()


def test_a_restored_server_asks_providers_before_it_starts_machines(
    take: Callable[[], Path], world: World, served: App, tmp_path: Path
) -> None:
    """Guard: without `has_looked` a machine is started before what the database says of sessions was checked."""
    world.submit("alice")
    file = take()
    served.close()
    app = start(restored(file, tmp_path / "new"), world)
    ticker = Ticker(app, has_moved=True)
    ticker._dispatch()
    assert not world.machines.launched
    ticker._watch.round()
    ticker._dispatch()
    assert len(world.machines.launched) == 1
    app.close()


def test_machines_have_time_to_find_a_server_that_moved(world: World) -> None:
    """Guard: without `find_us_s` a notebook is given up a minute after the start, before its name leads anywhere."""
    world.submit("alice")
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    world.machines.liveness[worker.lease] = Liveness.UNSEEN
    world.clock.tick(1_000)
    ctx = world.start_server()
    watch = Watch(ctx, longest_rest_s=1e9, find_us_s=FIND_US_S)
    world.clock.tick(FIND_US_S)
    watch.round()
    assert worker.report().action.value == "continue"
    world.clock.tick(FIND_US_S)
    watch.round()
    with ctx.uow() as tx:
        lease = tx.leases.get(worker.lease)
    assert lease is not None
    assert lease.state is LeaseState.EXPIRED


@pytest.mark.parametrize("target", [pytest.param("sqlite"), pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_backup_goes_to_either_database(
    target: str,
    empty_database: Callable[[str], str],
    world: World,
    served: App,
    take: Callable[[], Path],
    tmp_path: Path,
) -> None:
    """Every row of every table is the same afterwards, and new events get new numbers."""
    world.submit("alice", steps=7)
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    worker.step = 3
    worker.save()
    worker.report()
    file, before = take(), _rows(served.settings.url)
    served.close()
    url = empty_database(target)
    restore(file, tmp_path / "new", url)
    assert _rows(url) == before
    with pytest.raises(ConflictError, match=r"exists already|is in use"):
        restore(file, tmp_path / "newer", url)
    assert not (tmp_path / "newer").exists()
    settings = Settings(data_dir=tmp_path / "new", database_url=url, offline=True, local_slots=0)
    app = start(settings, world)
    world.ctx = app.context
    world.submit("bob")
    app.close()


def _rows(url: str) -> dict[str, list[str]]:
    engine = make_engine(url)
    with engine.connect() as connection:
        rows = {t.name: sorted(repr(tuple(r)) for r in connection.execute(select(t))) for t in metadata.sorted_tables}
    engine.dispose()
    return rows


@pytest.fixture
def file(sqlite_app: App, tmp_path: Path) -> Path:
    """A backup of a server on SQLite with one stored file, of which it has stated no hash."""
    sqlite_app.store.put_stream("jobs/job-1/f1/aa.bin", iter([random.Random(1).randbytes(200_000)]))
    back_up(sqlite_app.settings.folder, sqlite_app.settings.url, tmp_path / "backup.tar")
    return tmp_path / "backup.tar"


def _refuses(file: Path, folder: Path, words: str) -> None:
    settings = Settings(data_dir=folder)
    with pytest.raises(TrainhopError, match=words) as refused:
        restore(file, folder, settings.url)
    assert not folder.exists(), "nothing is left"
    assert "\n" not in str(refused.value)


def test_a_backup_is_private_and_whole_or_not_there(file: Path, sqlite_app: App, tmp_path: Path) -> None:
    """A disk that fills leaves the older backup as it was, and nothing beside it."""
    assert file.stat().st_mode & 0o777 == 0o600
    before, beside = file.read_bytes(), set(tmp_path.iterdir())
    folder, url = sqlite_app.settings.folder, sqlite_app.settings.url
    for size in (0, 100_000, len(before) - 30_000):
        with files_of_at_most(size), pytest.raises(UnavailableError, match=r"^The backup was not written: .*\.$"):
            back_up(folder, url, file)
        assert (file.read_bytes(), set(tmp_path.iterdir())) == (before, beside)
    for place, words in (
        (folder / "backup.tar", "is in the data folder"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "backup.tar", "was not written"),
    ):
        with pytest.raises(TrainhopError, match=words):
            back_up(folder, url, place)
    with pytest.raises(ConflictError, match="No server has used"):
        back_up(tmp_path / "no", url, file)
    with pytest.raises(ConflictError, match=r"There is no database .*or TRAINHOP_DATABASE_URL"):
        back_up(folder, f"sqlite:///{tmp_path / 'none.db'}", file)


def test_a_disk_that_fills_during_a_restore_leaves_nothing(file: Path, tmp_path: Path) -> None:
    with files_of_at_most(150_000):
        _refuses(file, tmp_path / "new", r"^Nothing was restored: .*\.$")


def test_a_damaged_backup_is_refused_before_anything_is_placed(file: Path, tmp_path: Path) -> None:
    """Guard: without the comparison of hashes a flipped bit of a checkpoint or a key is restored."""
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        inside = {m.name: (m.offset_data, m.size) for m in tar}
    assert {"database.sqlite", "secret.key", "store/jobs/job-1/f1/aa.bin", "hashes.json"} <= set(inside)
    for begin, size in inside.values():
        at = begin + size // 2
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        _refuses(file, tmp_path / "new", "backup")
    for length in (0, 100, 700, len(whole) // 2, inside["hashes.json"][0], inside["hashes.sha256"][0]):
        file.write_bytes(whole[:length])
        _refuses(file, tmp_path / "new", r"damaged|not a backup")
    file.write_text("no tar")
    _refuses(file, tmp_path / "new", "not a backup of trainhop")
    _refuses(tmp_path / "none.tar", tmp_path / "new", r"none.tar: No such file")


def _rewritten(file: Path, name: str, change: Callable[[tarfile.TarInfo, bytes], bytes]) -> None:
    """The same file with another member `name`."""
    with tarfile.open(file) as old:
        members = [(m, (old.extractfile(m) or BytesIO()).read()) for m in old]
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as new:
        for member, content in members:
            text = change(member, content) if member.name == name else content
            member.size = len(text)
            new.addfile(member, BytesIO(text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "newer version of trainhop. Upgrade"),
        ({"schema": "9999", "version": "9.9"}, r"newer version, trainhop 9.9.*revision 9999.*Upgrade"),
        ({"schema": 7}, "damaged"),
    ],
)
def test_a_backup_of_a_newer_version_is_refused(file: Path, tmp_path: Path, change: dict, words: str) -> None:
    _rewritten(file, ABOUT, lambda _, text: json.dumps(json.loads(text) | change).encode())
    _refuses(file, tmp_path / "new", words)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "store/../../evil", "a//b", ""])
def test_a_member_cannot_leave_the_folder(file: Path, tmp_path: Path, name: str) -> None:
    """Guard: without `is_name` a backup writes wherever it likes."""

    def rename(member: tarfile.TarInfo, content: bytes) -> bytes:
        member.name = name
        return content

    _rewritten(file, "secret.key", rename)
    _refuses(file, tmp_path / "new", "damaged")
    assert not (tmp_path / "evil").exists()


def test_a_used_folder_is_not_restored_over(file: Path, sqlite_app: App, tmp_path: Path) -> None:
    """Neither that of a living server nor another one. What a killed restore has left is not in the way."""
    folder = sqlite_app.settings.folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConflictError, match="is in use, and a backup is restored to an empty one only"):
        restore(file, folder, sqlite_app.settings.url)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / ".restoring-1234").mkdir()
    (other / ".restoring-1234" / "half").write_text("a file")
    (other / "server.lock").touch()
    settings = restored(file, other)
    assert not list(other.glob(".restoring-*"))
    with pytest.raises(ConflictError, match="is in use"):
        restore(file, other, settings.url)
    taken = tmp_path / "taken.db"
    taken.touch()
    with pytest.raises(ConflictError, match="exists already"):
        restore(file, tmp_path / "third", f"sqlite:///{taken}")
    assert not (tmp_path / "third").exists()
    with pytest.raises(InvalidError, match="is not a folder"):
        restore(file, taken, settings.url)


def test_the_notes_of_drivers_are_kept_and_the_rest_is_not(sqlite_app: App, tmp_path: Path) -> None:
    folder = sqlite_app.settings.folder
    kept = {
        "sessions/lease-1/pid.json": b"{}",
        "kaggle/lease-2/session.json": b"{}",
        "kaggle/lease-2/output.log": b"lines",
        "kaggle/lease-2/files/jobs__j__f1__aa.safetensors": b"weights",
        "kaggle/.accounts/a1/session.json": b"{}",
        "drivers/workshop/lease-3/outbox.jsonl": b"{}",
    }
    left = (
        "models/tiny/config.json",
        "exports/job/gguf/a.json",
        "trackers/write-1/debug.log",
        "sessions/lease-1/spool/a.safetensors",
        "log",
    )
    for name in (*kept, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(kept.get(name, b"left"))
    (folder / "sessions" / "link.json").symlink_to("/etc/hostname")
    back_up(folder, sqlite_app.settings.url, tmp_path / "backup.tar")
    new = restored(tmp_path / "backup.tar", tmp_path / "new").folder
    found = {p.relative_to(new).as_posix(): p.read_bytes() for p in new.rglob("*") if p.is_file()}
    assert {name: found.get(name) for name in kept} == kept
    assert not set(left) & set(found)
    assert "sessions/link.json" not in found


def test_a_damaged_store_is_told_and_does_not_stop_a_backup(world: World, served: App, tmp_path: Path) -> None:
    key = f"datasets/{world.dataset}"
    for spoil, told in (
        (lambda path: path.write_bytes(b"rots"), ([], [key])),
        (lambda path: path.unlink(), ([key], [])),
    ):
        spoil(world.store.path(key))
        written = back_up(served.settings.folder, served.settings.url, tmp_path / "backup.tar")
        assert (written.missing, written.changed) == told


def test_the_files_of_exports_are_looked_for(world: World, served: App, tmp_path: Path) -> None:
    """Guard: without them in `_NAMED` a backup with a damaged export was called whole."""
    job = trained(world)
    started(world, job)
    finish(running(world))
    keys = shown(world, job).keys or {}
    world.store.path(keys["Modelfile"]).unlink()
    world.store.path(keys["model-f16.gguf"]).write_bytes(b"rots")
    written = back_up(served.settings.folder, served.settings.url, tmp_path / "backup.tar")
    assert (written.missing, written.changed) == ([keys["Modelfile"]], [keys["model-f16.gguf"]])


def test_a_folder_with_another_database_is_not_backed_up(sqlite_app: App, tmp_path: Path) -> None:
    (sqlite_app.settings.folder / ID_FILE).write_text("instance-other\n")
    with pytest.raises(ConflictError, match="belongs to another data folder"):
        back_up(sqlite_app.settings.folder, sqlite_app.settings.url, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


def test_a_restored_folder_is_a_copy_wherever_its_file_lands(file: Path, tmp_path: Path) -> None:
    """On a like machine the file with the id may get the very inode that the original's had."""
    settings = restored(file, tmp_path / "new")
    note = json.loads((settings.folder / "instance.json").read_text())
    assert (note["device"], note["inode"], note["changed_ns"], note["host"]) == (0, 0, 0, platform.node())
    with pytest.raises(ConflictError, match="was copied from"):
        InstanceFolder(settings.folder).refuse_copy()
    shutil.rmtree(settings.folder)
