"""A private PostgreSQL server in a temporary folder, started from the programs that the system has."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.helpers.ports import quiet_port


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(p) for p in [shutil.which("initdb")] if p is not None
    ]
    return found[-1].parent if found else None


def missing_programs() -> str:
    """Why no PostgreSQL can be started here, or nothing."""
    if _programs() is None:
        return "PostgreSQL's server programs (initdb, postgres) are not installed"
    if os.getuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return "PostgreSQL does not run as root and there is no user called postgres"
    return ""


TEMPLATE = "template_of_tests"
# What a migration changes, and a test that changes the schema.
_SCHEMA = b"""
SELECT md5(string_agg(concat(attrelid::regclass, '.', attname, atttypid, attnotnull), ',' ORDER BY attrelid, attnum)),
    (SELECT string_agg(version_num, ',') FROM alembic_version)
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
"""
_EMPTY = b"""
DO $$ DECLARE kept RECORD; BEGIN
    SET LOCAL session_replication_role = replica;  -- no foreign key is checked
    FOR kept IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
        EXECUTE format('DELETE FROM %I', kept.tablename);
    END LOOP;
    PERFORM setval(oid, 1, false) FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace;
END $$
"""


class Cluster:
    """One server on a free loopback port; durability is off, it lives for the tests only."""

    def __init__(self) -> None:
        programs = _programs()
        assert programs is not None
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="trainhop-pg-"))
        self._user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        self._process: subprocess.Popen[Any] | None = None
        self._names = itertools.count()
        self._schema: Any = None
        self._returned: list[str] = []
        self.port = quiet_port()

    def _as_user(self) -> dict[str, Any]:
        return {"user": self._user.pw_uid, "group": self._user.pw_gid} if self._user else {}

    def start(self) -> None:
        """Make the cluster and wait until it answers."""
        if self._user:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        data = self._folder / "data"
        subprocess.run(
            [self._programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._as_user(),
        )
        options = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
        command = [self._programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(self.port), "-k", self._folder]
        command += [part for option in options for part in ("-c", option)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder, **self._as_user()
            )
        ready = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        for _ in range(300):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            if self._process is None or self._process.poll() is not None:
                break
            self._process_wait(0.1)
        raise RuntimeError((self._folder / "log").read_text())

    def _process_wait(self, seconds: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def _connect(self, name: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname=name, autocommit=True)

    def _run(self, statement: str) -> None:
        with self._connect() as connection:
            connection.execute(statement.encode())

    def create(self, name: str | None = None, *, template: str = "template0") -> str:
        """A new database's URL."""
        name = name or f"test_{next(self._names)}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def migrate(self, upgrade: Callable[[str], None]) -> None:
        """Make the database that `lend` copies. `upgrade` gets its URL."""
        upgrade(self.create(TEMPLATE))
        with self._connect(TEMPLATE) as connection:
            self._schema = connection.execute(_SCHEMA).fetchone()

    def lend(self) -> str:
        """The URL of a migrated, empty database whose name no test has seen."""
        return self._url(self._returned.pop()) if self._returned else self.create(template=TEMPLATE)

    def take_back(self, url: str) -> None:
        """Empty a database for the next test: a hundred times as quick as making one.

        It gets another name first, so that no thread of this test can come back. It is removed if its schema or
        revision was changed.
        """
        old, name = url.rpartition("/")[2], f"test_{next(self._names)}"
        with self._connect() as connection:
            for statement in (
                f'ALTER DATABASE "{old}" ALLOW_CONNECTIONS false',
                f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{old}'",
                f'ALTER DATABASE "{old}" RENAME TO "{name}"',
                f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true',
            ):
                connection.execute(statement.encode())
        with self._connect(name) as connection:
            is_usual = connection.execute(_SCHEMA).fetchone() == self._schema
            if is_usual:
                connection.execute(_EMPTY)
        if is_usual:
            self._returned.append(name)
        else:
            self.drop(self._url(name))

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        self._run(f'DROP DATABASE "{url.rpartition("/")[2]}" WITH (FORCE)')

    def stop(self) -> None:
        """End the server and remove its folder."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: at once, nothing is worth saving
            self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)
