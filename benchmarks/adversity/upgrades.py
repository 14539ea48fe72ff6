"""A data folder of every earlier schema revision with real rows, upgraded by a real start: equal answers.

Two comparisons. The rows: every column that the revision had has the same value afterwards. The answers: the read
operations in `LISTS` and `OF_JOBS` answer the same as for the installation at today's revision from which the rows
came, except for fields that the revision could not hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, select
from starlette.testclient import TestClient

from benchmarks.adversity.revisions import KEYS, RENAMED, Revisions, opened
from benchmarks.report import Figure
from benchmarks.tiny_job import say
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.bootstrap import App
from orchestrator.entrypoints.http.app import make_app
from tests.helpers.postgres import Cluster, missing_programs

LISTS = ("me", "members", "tokens", "accounts", "datasets", "jobs", "stores", "notifications")
OF_JOBS = ("", "/sessions", "/checkpoints", "/events", "/metrics?name=loss", "/samples")
MEASURED = frozenset({"free"})
"""The disk's free space changes by itself."""
UNKNOWN_BEFORE = {
    "0002": {"accounts/has_credentials", "accounts/consented_at", "accounts/note", "stores"},
    "0003": {"notifications"},
}
"""Answers that a database before this revision could not hold."""

Rows = dict[tuple[str, str], list[Any]]


def upgrades(folder: Path) -> Iterator[Figure]:
    """Upgrade a folder of each revision on each database, and compare."""
    revisions = Revisions(folder / "revisions")
    with opened(revisions.today) as app:
        expected = _answers(app)
    tried, values, wrong = 0, 0, list[str]()
    for revision in revisions.names:
        source = revisions.template(revision)
        target = revisions.data_folder(f"folder-{revision}", source)
        count, found = _upgraded(revision, target, None, make_engine(f"sqlite:///{source}"), expected)
        tried, values, wrong = tried + 1, values + count, wrong + found
    databases = "SQLite"
    if not missing_programs():
        databases = "SQLite and PostgreSQL"
        for revision, count, found in _on_postgres(revisions, expected):
            say(f"  PostgreSQL {revision}: {count} values")
            tried, values, wrong = tried + 1, values + count, wrong + found
    yield Figure(
        name=f"folders of earlier revisions upgraded ({databases})",
        value=tried,
        bar=f">= {len(revisions.names)}",
        ok=tried >= len(revisions.names),
    )
    yield Figure(name="answers and columns compared", value=values, bar="> 0", ok=values > 0)
    yield Figure(name="differences", value=wrong[:5] or 0, bar="0", ok=not wrong)


def _on_postgres(revisions: Revisions, expected: dict[str, Any]) -> Iterator[tuple[str, int, list[str]]]:
    cluster = Cluster()
    try:
        cluster.start()
        for revision in revisions.names:
            url = cluster.create(f"r{revision}")
            engine = make_engine(url)
            revisions.fill(engine, revision)
            target = revisions.data_folder(f"postgres-{revision}")
            yield revision, *_upgraded(revision, target, url, engine, expected)
    finally:
        cluster.stop()


def _upgraded(
    revision: str, target: Path, url: str | None, source: Engine, expected: dict[str, Any]
) -> tuple[int, list[str]]:
    """Start a server on the folder. Returns how much was compared, and what differs."""
    before = _columns(source)
    source.dispose()
    tokens = [(target / key).read_bytes() for key in KEYS]
    with opened(target, url) as app:
        after, answers = _columns(app.engine), _answers(app)
    wrong = [
        f"{revision}: {table}.{column}"
        for (table, column), values in before.items()
        if not _is_in(values, after.get((table, RENAMED.get(column, column)), []))
    ]
    unknown = {path for since, paths in UNKNOWN_BEFORE.items() if revision < since for path in paths}
    wrong += [f"{revision}: {path}" for path in _differences(expected, answers, unknown)]
    if tokens != [(target / key).read_bytes() for key in KEYS]:
        wrong.append(f"{revision}: a key has changed")
    return len(before) + len(answers), wrong


def _columns(engine: Engine) -> Rows:
    """The values of every column, in the order of their text."""
    known = MetaData()
    known.reflect(engine)
    with engine.connect() as connection:
        return {
            (table.name, column.name): sorted(connection.execute(select(column)).scalars(), key=repr)
            for table in known.sorted_tables
            if table.name != "alembic_version"
            for column in table.columns
        }


def _is_in(before: list[Any], after: list[Any]) -> bool:
    """Whether all values are still there. A start adds rows, such as the pool of this computer."""
    left = list(map(repr, after))
    for value in map(repr, before):
        if value not in left:
            return False
        left.remove(value)
    return True


def _answers(app: App) -> dict[str, Any]:
    """The answers of the read operations in `LISTS` and `OF_JOBS`, by path."""
    token = app.token_file.read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    with TestClient(make_app(app), base_url="http://127.0.0.1", headers=headers) as client:

        def get(path: str) -> Any:
            answer = client.get(f"/api/v1/{path}")
            assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:200]}"
            return answer.json()

        found = {path: get(path) for path in LISTS}
        jobs = [job["id"] for job in found["jobs"]["items"]]
        return found | {f"jobs/{job}{part}": get(f"jobs/{job}{part}") for job in jobs for part in OF_JOBS}


def _differences(expected: dict[str, Any], found: dict[str, Any], unknown: set[str]) -> list[str]:
    wrong = [f"{path} is missing" for path in expected.keys() - found.keys()]
    for path in expected.keys() & found.keys():
        if path not in unknown:
            skipped = {field.partition("/")[2] for field in unknown if field.startswith(f"{path}/")}
            wrong += [f"{path}{where}" for where in _compared(expected[path], found[path], skipped)]
    return wrong


def _compared(one: Any, other: Any, skipped: set[str], where: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if key not in skipped | MEASURED:
                yield from _compared(one.get(key), other.get(key), skipped, f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _compared(left, right, skipped, f"{where}/{number}")
    elif one != other:
        yield f"{where}: {one!r} is {other!r}"
