"""One SQLite database for each earlier revision of the schema, with the rows of a real installation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, insert, select

from orchestrator.adapters.database.migrate import scripts
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account, OneTimeCode
from orchestrator.domain.audits import Audit, AuditLabel, AuditUnit, StrataKind
from orchestrator.domain.comparisons import BlindComparison, Choice, PlanName, Rater, Vote
from orchestrator.domain.evaluations import Answers, Evaluation
from orchestrator.domain.judgements import JudgeAnswer, JudgeEndpoint, Judgement, JudgementState
from orchestrator.domain.models import Candidate, Model, MoveKind
from orchestrator.domain.notifications import Channel, ChannelKind, Delivery
from orchestrator.domain.storage import StoreConfig
from orchestrator.domain.trust.audit_estimate import Label
from orchestrator.domain.trust.judge import Slot
from orchestrator.ports.repository import Transaction
from orchestrator.services.dispatch import dispatch
from orchestrator.testing import FakeClock
from tests.helpers.world import World
from worker.shared.messages import Reading, Sample

RENAMED = {"memory_bytes": "host_bytes", "step_s": "host_step_s"}
"""Columns of earlier revisions with their names of today."""
KEYS = ("admin.token", "secret.key", "vault.key")


class Revisions:
    """Writes one real installation at today's revision, and its rows again at every earlier one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.today = folder, folder / "today"
        folder.mkdir(parents=True, exist_ok=True)
        history = list(ScriptDirectory.from_config(_config()).walk_revisions())
        self.names = sorted(script.revision for script in history)[:-1]
        with opened(self.today) as app:
            _live(app, folder / "world")

    def template(self, revision: str) -> Path:
        """The database of a revision. It is made once."""
        path = self.folder / f"{revision}.db"
        if not path.exists():
            engine = make_engine(f"sqlite:///{path}")
            self.fill(engine, revision)
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            engine.dispose()
        return path

    def fill(self, engine: Engine, revision: str) -> None:
        """Create the tables of a revision and put in the rows of today, as far as it had columns for them."""
        with engine.connect() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        source = make_engine(f"sqlite:///{self.today / 'trainhop.db'}")
        known, wanted = MetaData(), MetaData()
        known.reflect(source)
        wanted.reflect(engine)
        with source.connect() as reading, engine.begin() as writing:
            for table in wanted.sorted_tables:
                if table.name != "alembic_version":
                    rows = _rows(reading, known.tables[table.name], table)
                    if rows:
                        writing.execute(insert(table), rows)
        source.dispose()

    def data_folder(self, name: str, database: Path | None = None) -> Path:
        """A data folder of an earlier version: its keys, and no instance's id."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for key in KEYS:
            shutil.copyfile(self.today / key, target / key)
        shutil.copytree(self.today / "store", target / "store")
        if database is not None:
            shutil.copyfile(database, target / "trainhop.db")
        return target


@contextmanager
def opened(folder: Path, url: str | None = None) -> Iterator[App]:
    """A server over a data folder, at the time of the installation."""
    app = build(Settings(data_dir=folder, database_url=url, offline=True, local_slots=0))
    clock = FakeClock()
    clock.tick(100_000)
    app.context = replace(app.context, clock=clock, started_at=clock.now())
    try:
        yield app
    finally:
        app.close()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    return config


def _rows(reading: Any, source: Table, target: Table) -> list[dict[str, Any]]:
    names = {c.name: RENAMED.get(c.name, c.name) for c in target.columns}
    there = {name: today for name, today in names.items() if today in source.c}
    rows = reading.execute(select(*[source.c[today].label(name) for name, today in there.items()])).mappings()
    return [{name: _fitting(target, name, value) for name, value in row.items()} for row in rows]


def _fitting(target: Table, name: str, value: Any) -> Any:
    """The value as the other database wants it: SQLite has no booleans."""
    return bool(value) if target.c[name].type.python_type is bool and value is not None else value


def _live(app: App, folder: Path) -> None:
    """A few days of an installation: jobs in every state, checkpoints, events, curves, channels, codes."""
    folder.mkdir()
    world = World(app.engine, folder)
    ended, cut, failed = (world.submit("alice", 2), world.submit("bob", 4), world.submit("alice", 2))
    for _ in range(3):
        dispatch(world.ctx)
        for worker in world.new_workers():
            job = worker.start().job
            worker.step += 2
            worker.report()
            worker.save()
            world.clock.tick(60)
            if job == ended:
                worker.finish()
            elif job == failed:
                worker.fail(permanent=True)
            else:
                worker.release()
    assert world.job(cut).head
    world.submit("bob", 3, name="waits")
    _things(world, ended)


def _things(world: World, job: str) -> None:
    """What members have besides jobs."""
    now = world.clock.now()
    with world.ctx.uow() as tx:
        lease = tx.leases.of_job(job)[0]
        tx.reports.add_samples(job, [Sample(step=2, prompt="hello", text="good day")], now)
        tx.reports.add_reading(lease.id, now, 2, Reading(cpu_percent=0.5))
        channel = {"id": "channel-1", "member_id": "alice", "job_id": None, "kind": ChannelKind.WEBHOOK}
        tx.channels.add(
            Channel(**channel, label="there", topics=["failed"], after_event=0, created_at=now, sealed="sealed")
        )
        said = {"topic": "failed", "title": "t", "text": "t", "body": {"data": {}}, "next_at": now, "created_at": now}
        tx.deliveries.add(Delivery(id="delivery-1", channel_id="channel-1", key="k", **said))
        tx.stores.put(StoreConfig(name="drive", config={"folder": "Trainhop 1"}, created_at=now))
        tx.store_objects.get_or_add("drive", "jobs/", "an-id")
        code = {"code_hash": "c" * 64, "job_id": job, "member_id": "alice", "created_at": now, "expires_at": now + 60}
        tx.codes.add(OneTimeCode(**code, store="local", mailbox=""))
        audit = {"seed": 7, "strata_kind": StrataKind.LENGTH, "strata": {"short": 3}, "max_wrong": 0.1}
        counts = {"short": [0, 1, 0, 0]}
        tx.audits.add(
            Audit(sha256="d" * 64, member_id="alice", row_format="text", counts=counts, created_at=now, **audit)
        )
        tx.audits.put_units([AuditUnit(sha256="d" * 64, place=0, row=1, turn=0, stratum="short", content="[]")])
        given = {"label": Label.WRONG, "source": "", "note": "no", "at": now}
        tx.audits.put_label(AuditLabel(sha256="d" * 64, place=0, member_id="alice", **given))
        tx.accounts.add(
            Account(id="pool-2", provider="local", member_id=None, name="second", config={"slots": 2}, created_at=now)
        )
        _evaluation(tx, job, now)
        _judgement(tx, job, now)
        _model(tx, job, now)


def _evaluation(tx: Transaction, job: str, now: float) -> None:
    """A finished evaluation with one vote on its answers."""
    made = {"job_id": job, "trained_job": job, "owner": "alice", "checkpoint_sha256": "c" * 64, "adapter_sha256": None}
    evaluation = Evaluation(**made, settings={}, created_at=now, finished_at=now)
    tx.evaluations.add(evaluation)
    texts = {"prompt": [{"role": "user", "content": "hello"}], "base": "good day", "adapter": "hi"}
    cut = {"base_truncated": False, "adapter_truncated": True, "base_tokens": 2, "adapter_tokens": 1}
    tx.evaluations.finish(evaluation, [Answers(job_id=job, number=0, **texts, **cut)])
    how = {"question": "Which is better?", "plan": PlanName.SMALL, "margin": None, "margin_prompts": 0, "key": "e" * 64}
    tx.comparisons.add(
        BlindComparison(
            id="comparison-1", job_id=job, member_id="alice", prompts=1, identical=[], created_at=now, **how
        )
    )
    tx.comparisons.add_rater(
        Rater(id="rater-1", comparison_id="comparison-1", name="Ann", created_at=now, link_hash="f" * 64)
    )
    tx.comparisons.put_vote(
        Vote(comparison_id="comparison-1", number=0, rater_id="rater-1", choice=Choice.TIE, note="", at=now)
    )


def _judgement(tx: Transaction, job: str, now: float) -> None:
    """A paused judgement with one verdict, by an endpoint with a key."""
    where = {"url": "https://judge.example/v1", "model": "judge"}
    tx.judge_endpoints.add(
        JudgeEndpoint(
            id="judge-1",
            member_id="alice",
            name="house",
            created_at=now,
            sealed="sealed",
            consented_at=now,
            consented_by="alice",
            **where,
        )
    )
    counts = {"prompt_version": 1, "prompts": 1, "identical": [], "max_tokens": 9, "used_tokens": 5}
    how = {"state": JudgementState.PAUSED, "reason": "Paused by alice.", "created_at": now}
    tx.judgements.add(
        Judgement(id="judgement-1", job_id=job, member_id="alice", endpoint_id="judge-1", **where, **counts, **how)
    )
    given = {"verdict": Slot.TIE, "failure": "", "tokens": 5, "is_estimated": False, "at": now}
    tx.judgements.add_answer(JudgeAnswer(judgement_id="judgement-1", number=0, adapter_first=True, **given))


def _model(tx: Transaction, job: str, now: float) -> None:
    """A model whose only candidate is promoted."""
    model = Model(member_id="alice", name="trail-guide", created_at=now)
    tx.models.add(model)
    tx.models.add_candidate(
        Candidate(member_id="alice", model=model.name, job_id=job, adapter_sha256="a" * 64, added_at=now)
    )
    tx.models.add_move(model.move(job, None, MoveKind.PROMOTION, actor="alice", at=now))
    tx.models.save(model)
