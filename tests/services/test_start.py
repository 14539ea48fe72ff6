"""What a server finds and leaves in its data folder when it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bootstrap import App, build
from orchestrator.config import Settings


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
        found = tx.token(app.context.tokens.hash(app.token_file.read_text().strip()))
    return found.id if found else None


def test_a_revoked_admin_token_stays_revoked(start) -> None:
    """Guard: with every unknown token of the file added, a restart brought the revoked one back."""
    app = start(None)
    revoked, secret = token_of(app), app.token_file.read_text()
    assert revoked is not None
    assert token_of(start(None)) == revoked
    with app.context.uow() as tx:
        tx.delete_token(revoked)
    app = start(None)
    assert (token_of(app), app.token_file.read_text()) == (None, secret)
    app.token_file.unlink()
    app = start(None)
    assert token_of(app) is not None
    assert app.token_file.read_text() != secret


def test_a_new_database_takes_the_token_that_is_there(empty_database, start) -> None:
    """Guard: without the look for an admin, whoever began anew with a new database was locked out."""
    secret = start(empty_database("sqlite")).token_file.read_text()
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
        assert tx.members()
    modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    assert {"trainhop.db", "trainhop.db-wal", "trainhop.db-shm", "store", "sessions", "secret.key"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_what_a_killed_server_was_writing_goes(start, tmp_path: Path) -> None:
    """Guard: without the look at the start it lay there for ever. A local worker goes on while the server is away: with the
    shorter pattern `.incoming-*` its copy went, too."""
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
