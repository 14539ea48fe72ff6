"""What a server finds and leaves in its data folder when it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.instance import ID_FILE
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.providers.registry import Registry
from orchestrator.testing import FakeProvider


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Starts a server over the data folder, and stops the one before."""
    running: list[App] = []

    def begin(url: str | None) -> App:
        while running:
            running.pop().close()
        running.append(build(Settings(data_dir=tmp_path / "data", database_url=url, offline=True)))
        return running[-1]

    yield begin
    while running:
        running.pop().close()


def token_of(app: App) -> str | None:
    """The id of the token in the admin's file, if it opens anything."""
    with app.context.uow() as tx:
        found = tx.tokens.get_by_hash(app.context.tokens.hash(app.token_file.read_text().strip()))
    return found.id if found else None


def test_a_revoked_admin_token_stays_revoked(start) -> None:
    """Guard: with every unknown token of the file added, a restart brought the revoked one back."""
    app = start(None)
    revoked, secret = token_of(app), app.token_file.read_text()
    assert revoked is not None
    assert token_of(start(None)) == revoked
    with app.context.uow() as tx:
        tx.tokens.delete(revoked)
    app = start(None)
    assert (token_of(app), app.token_file.read_text()) == (None, secret)
    app.token_file.unlink()
    app = start(None)
    assert token_of(app) is not None
    assert app.token_file.read_text() != secret


def test_a_new_database_takes_the_token_that_is_there(empty_database, start) -> None:
    """Guard: without the look for an admin, whoever began anew with a new database was locked out."""
    first = start(empty_database("sqlite"))
    secret = first.token_file.read_text()
    (first.settings.folder / ID_FILE).unlink()  # with it an empty database is refused
    app = start(empty_database("sqlite"))
    assert token_of(app) is not None
    assert app.token_file.read_text() == secret


def test_nobody_else_reads_what_lies_in_a_folder_that_was_there_before(start, tmp_path: Path) -> None:
    """Guard: without `_shut` the database was 0644 and the folders 0755."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    (data / "store").mkdir(mode=0o755)
    app = start(None)
    with app.context.uow() as tx:
        assert tx.members.all()
    modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    assert {"trainhop.db", "trainhop.db-wal", "trainhop.db-shm", "store", "sessions", "secret.key"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_what_a_killed_server_was_writing_goes(start, tmp_path: Path) -> None:
    """Guard: without the look at the start it lay there for ever. A local worker goes on while the server is away: with
    the shorter pattern `.incoming-*` its copy went, too."""
    data = tmp_path / "data"
    (data / "store/jobs/job-1/f1").mkdir(parents=True)
    (data / "store/datasets").mkdir()
    names = [".incoming-ab_12xyz", "store/.incoming-12345678", "store/datasets/.incoming-abcdefgh"]
    left = [data / name for name in names]
    kept = data / "store/jobs/job-1/f1/.incoming-0123456789abcdef.safetensors"
    for path in (*left, kept):
        path.write_bytes(b"half")
    start(None)
    assert [path for path in left if path.exists()] == []
    assert kept.exists()


def pools_after_a_start(folder: Path, providers: dict[str, FakeProvider]) -> list[tuple[str, str]]:
    """Provider and name of each pool after a server with these drivers was built over `folder`."""
    app = build(Settings(data_dir=folder, offline=True, local_slots=2), providers=Registry.of(providers))
    try:
        with app.context.uow() as tx:
            pools = tx.accounts.all()
    finally:
        app.close()
    assert all(pool.config["slots"] == 2 for pool in pools)
    return [(pool.provider, pool.name) for pool in pools]


def test_any_driver_for_this_computer_gets_the_first_pool(tmp_path: Path) -> None:
    """Guards: with a fixed name in `_add_pool` the driver got none; without the look at all such drivers a second one
    stopped the server at its start."""
    boxes, workshop = FakeProvider("boxes"), FakeProvider("workshop", this_computer=True)
    assert pools_after_a_start(tmp_path, {"boxes": boxes}) == []
    first = [("workshop", "this-computer")]
    assert pools_after_a_start(tmp_path, {"boxes": boxes, "workshop": workshop}) == first
    other = FakeProvider("other", this_computer=True)
    assert pools_after_a_start(tmp_path, {"other": other, "workshop": workshop}) == first
