"""The revisions and the tables say the same, on both databases; what is newer than this version is refused."""

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, MetaData, event, insert, text

from orchestrator.adapters.database.migrate import HEAD, every_table, scripts, upgrade
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.domain.errors import ConflictError
from tests.conftest import DATABASES

COLUMNS = text(
    "SELECT table_name, column_name, data_type, is_nullable, character_maximum_length, column_default "
    "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
)
CONSTRAINTS = text(
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
)
INDEXES = text("SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2")


def _plain(sql):
    return " ".join(sql.replace('"', "").replace("( ", "(").replace(" )", ")").split())


def _columns(sql):
    """The body of CREATE TABLE as a set: SQLite appends what a later revision adds, and the order is no difference."""
    head, _, body = _plain(sql).partition("(")
    body, _, tail = body.rpartition(")")
    parts, depth = [""], 0
    for sign in body:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return head, frozenset(part.strip() for part in parts), tail


def _described(engine):
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            found = [tuple(row) for query in (COLUMNS, CONSTRAINTS, INDEXES) for row in connection.execute(query)]
            return {row for row in found if row[0] != "alembic_version"}
        rows = connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        return {
            (kind, name, _columns(sql) if kind == "table" else _plain(sql))
            for kind, name, sql in rows
            if name != "alembic_version"
        }


@pytest.fixture(params=DATABASES)
def engines(request, empty_database):
    made = [make_engine(empty_database(request.param)) for _ in range(2)]
    yield made
    for engine in made:
        engine.dispose()


def test_upgrading_gives_the_tables_that_the_code_uses(engines):
    """Guard: a partial index without its condition in the revision showed up here on both databases."""
    upgraded, created = engines
    _upgrade_to(upgraded, "head")
    upgrade(created)
    assert _described(upgraded) == _described(created)
    names = {str(row[1]) for row in _described(created)}
    assert {"leases_one_live_per_job", "jobs_to_claim", "checkpoints_one_child_per_head"} <= names


def test_upgrading_twice_changes_nothing(engines):
    upgrade(engines[0])
    before = _described(engines[0])
    upgrade(engines[0])
    assert _described(engines[0]) == before


def test_tables_of_an_interrupted_start_are_made_by_the_next(engines):
    """Guard: without the transaction the next start found tables without a revision, and failed at the first."""
    last = every_table().sorted_tables[-1]
    event.listen(last, "before_create", _interrupt)
    with pytest.raises(InterruptedError):
        upgrade(engines[0])
    assert _described(engines[0]) == set()
    event.remove(last, "before_create", _interrupt)
    upgrade(engines[0])
    assert last.name in {str(row[1]) for row in _described(engines[0])} | {row[0] for row in _described(engines[0])}


def _interrupt(*_, **__):
    raise InterruptedError


def _upgrade_to(engine, revision):
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _filled(table, **values):
    """A row with something in every column that wants it."""
    wanted = [c for c in table.columns if not c.nullable and c.server_default is None]
    plain = {c.name: {} if isinstance(c.type, JSON) else "x" if c.type.python_type is str else 0 for c in wanted}
    return insert(table).values(plain | values)


def test_what_an_earlier_version_estimated_and_timed_is_kept(engines):
    """Removed: the UPDATE of 0007; plans of an upgraded server knew no pace on a GPU."""
    engine = engines[0]
    _upgrade_to(engine, "0005")
    with engine.begin() as connection:
        tables = MetaData()
        tables.reflect(connection, only=["members", "jobs"])
        connection.execute(_filled(tables.tables["members"], id="m"))
        connection.execute(_filled(tables.tables["jobs"], id="j", member_id="m", memory_bytes=7 << 30, step_s=16.5))
    upgrade(engine)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT gpu_bytes, host_bytes, gpu_step_s, host_step_s FROM jobs")).one()
    assert tuple(found) == (7 << 30, 7 << 30, 16.5, 16.5)


def test_a_newer_database_is_refused_in_words(engines):
    """Guard: without the check alembic failed with 'Can't locate revision', which helps nobody."""
    engine = engines[0]
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match=r"revision 9999.*newer"):
        upgrade(engine)


def test_the_newest_revision_is_the_one_that_is_named():
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_whoever_has_a_job_with_a_file_has_brought_it(engines):
    """Guard: without the jobs in `_fill` of 0010 the first who brought a file could take it from all who did so
    later."""
    engine = engines[0]
    _upgrade_to(engine, "0009")
    with engine.begin() as connection:
        tables = MetaData()
        tables.reflect(connection, only=["members", "jobs", "datasets"])
        for name in ("ann", "bob"):
            connection.execute(_filled(tables.tables["members"], id=name, name=name))
        connection.execute(_filled(tables.tables["datasets"], sha256="abc", member_id="ann", name="rows.jsonl"))
        spec = {"datasets": [{"sha256": "abc"}, {"sha256": "nobody knows"}]}
        connection.execute(_filled(tables.tables["jobs"], id="j", member_id="bob", spec=spec))
    upgrade(engine)
    with engine.connect() as connection:
        brought = connection.execute(text("SELECT member_id, sha256, name FROM uploads ORDER BY 1")).all()
        key = connection.execute(text("SELECT key FROM datasets")).scalar_one()
    assert [tuple(row) for row in brought] == [("ann", "abc", "rows.jsonl"), ("bob", "abc", "rows.jsonl")]
    assert key == "datasets/abc"
