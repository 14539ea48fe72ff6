"""Outbox and saver against a server that answers, stays away, refuses, or has moved on. Waits are on events, never on time."""

from __future__ import annotations

import resource
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import stamina

from orchestrator.entrypoints.http.middleware import MAX_JSON_BYTES
from orchestrator.services.worker_messages import MAX_LINE
from worker.agent import transfers
from worker.agent.deadline import Budget, Cadence
from worker.agent.outbox import Outbox
from worker.agent.saver import Kept, Saver, bring_home
from worker.agent.session import Session
from worker.agent.time_ledger import Ledger
from worker.agent.uplink import Refused, ServerAway, Stale
from worker.shared import checkpoint_file
from worker.shared.messages import (
    Action,
    Assignment,
    Directive,
    Finish,
    Grant,
    GrantKind,
    Hardware,
    JobSpec,
    Manifest,
    MetricRow,
    Offer,
    OfferReply,
    Phase,
    Recipe,
    Release,
    Report,
    Sample,
    Started,
)
from worker.training.interface import Snapshot

PATIENCE_S = 20.0
SPEC = JobSpec.model_validate({"base_model": "m", "datasets": [{"path": "sha256:" + "0" * 64}], "max_steps": 99})


class Server:
    """Implements `worker.agent.uplink.Uplink` in memory; `mood` is called before every answer and may raise."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.heard = folder, []
        self.mood: Callable[[], None] = lambda: None
        self.directive = Directive(action=Action.CONTINUE)
        self.head: str | None = None
        self.granted = 0
        self.progress = threading.Condition()

    def _hear(self, message: Any) -> None:
        self.mood()
        with self.progress:
            self.heard.append(message)
            self.progress.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.progress:
            assert self.progress.wait_for(condition, PATIENCE_S), "it never came"

    def started(self, said: Started) -> None:
        self._hear(said)

    def report(self, said: Report) -> Directive:
        self._hear(said)
        return self.directive

    def offer(self, said: Offer) -> OfferReply:
        self._hear(said)
        if said.manifest.parent != self.head:
            return OfferReply(committed=False, refusal="another head")
        with self.progress:
            self.head = said.sha256
            self.progress.notify_all()
        return OfferReply(committed=True)

    def release(self, said: Release) -> None:
        self._hear(said)

    def finish(self, said: Finish) -> None:
        self._hear(said)

    def grants(self, fence: int, kind: GrantKind, count: int) -> list[Grant]:
        self.mood()
        return self.grants_in_advance(fence, kind, count)

    def grants_in_advance(self, fence: int, kind: GrantKind, count: int) -> list[Grant]:
        """As those that came with the assignment: no server needed."""
        self.granted += 1
        return [Grant(key=f"k{self.granted}", kind=kind, path=str(self.folder / f"store-{self.granted}"))]


class Desk:
    """An outbox and a saver wired to each other as the runner does it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.directives: list[Directive] = []
        self.ends: list[str] = []
        self.refusals: list[str] = []
        self.complaints: list[str] = []
        clock_free = Cadence(21_600.0, 600.0)
        self.saver = Saver(folder / "spool", None, Budget(600.0), clock_free, self)
        self.outbox = Outbox(
            server,
            folder / "outbox.jsonl",
            0.05,
            beat=self.beat,
            on_directive=self.directives.append,
            on_offer=self.saver.answered,
            on_stale=self.ends.append,
            complain=self.complain,
        )
        self.outbox.open()

    def beat(self) -> None:
        self.outbox.say(lambda seq: Report(lease="l", fence=1, seq=seq, step=0, phase=Phase.TRAIN))

    def say_step(self, step: int) -> None:
        row = MetricRow(step=step, values={"loss": 1.0})
        self.outbox.say(lambda seq: Report(lease="l", fence=1, seq=seq, step=step, phase=Phase.TRAIN, metrics=(row,)))

    def grant(self) -> Grant:
        return self.server.grants(1, GrantKind.CHECKPOINT, 1)[0]

    def offer(self, *, key: str, sha256: str, size: int, manifest: Manifest) -> Offer:
        said = self.outbox.say(
            lambda seq: Offer(lease="l", fence=1, seq=seq, key=key, sha256=sha256, size=size, manifest=manifest),
            urgent=True,
        )
        assert isinstance(said, Offer)
        return said

    def keep(self, path: Path, why: str) -> Kept | None:
        return None

    def withdraw(self, offer: Offer) -> None:
        self.outbox.withdraw(offer)

    def refused(self, why: str) -> None:
        self.refusals.append(why)

    def complain(self, text: str) -> None:
        self.complaints.append(text)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(Server(tmp_path), tmp_path)
    yield made
    made.saver.stop()
    made.server.mood = lambda: None
    made.outbox.close(PATIENCE_S)


def answer(step: int) -> Sample:
    return Sample(step=step, prompt="p", text="x" * 100_000)


def snapshot(step: int, *, size: int = 4) -> Snapshot:
    manifest = Manifest(
        job="j",
        fence=1,
        step=step,
        recipe=Recipe.of(SPEC),
        epoch=0,
        index=0,
        samples_seen=0,
        wall_seconds=0.0,
        backend="b",
        precision="fp32",
        micro_batch_size=1,
        hardware=Hardware(),
        versions={},
        state={},
    )
    return Snapshot(tensors={"w": np.full(size, step, np.float32)}, manifest=manifest)


def away() -> None:
    raise ServerAway("nobody there")


def test_checkpoints_form_a_chain(desk: Desk) -> None:
    for step in (1, 2, 3):
        desk.saver.take(snapshot(step))
        assert desk.saver.settle(PATIENCE_S)
    offers = [m for m in desk.server.heard if isinstance(m, Offer)]
    assert [o.manifest.parent for o in offers] == [None, offers[0].sha256, offers[1].sha256]
    assert list((desk.server.folder / "spool").iterdir()) == []


def test_a_server_that_is_away_gets_the_oldest_and_the_newest(desk: Desk) -> None:
    """Removed: dropping what lies between; the disk would fill for as long as the server is off."""
    desk.server.mood = away
    desk.server.grants = desk.server.grants_in_advance  # type: ignore[method-assign]
    for step in (1, 2, 3, 4):
        desk.saver.take(snapshot(step))
    assert not desk.saver.settle(0.2)
    assert len(list((desk.server.folder / "spool").iterdir())) == 2
    desk.server.mood = lambda: None
    assert desk.saver.settle(PATIENCE_S)
    steps = [m.manifest.step for m in desk.server.heard if isinstance(m, Offer)]
    assert steps[0] == 1
    assert steps[-1] == 4
    assert not desk.refusals


def test_a_server_that_returns_just_now_gets_no_checkpoint_that_is_being_dropped(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: dropped without the saver's lock, it was sent and committed meanwhile, and the newest one was refused."""
    take_back = desk.withdraw

    def late(offer: Offer) -> None:
        desk.server.mood = lambda: None
        with desk.server.progress:
            desk.server.progress.wait_for(lambda: desk.server.head == offer.sha256, 0.5)
        take_back(offer)

    monkeypatch.setattr(desk, "withdraw", late)
    desk.server.mood = away
    desk.server.grants = desk.server.grants_in_advance  # type: ignore[method-assign]
    for step in (1, 2, 3):
        desk.saver.take(snapshot(step))
    assert desk.saver.settle(PATIENCE_S)
    assert not desk.refusals


def test_an_address_that_has_taken_a_file_is_given_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: the grant of a checkpoint that was dropped after its upload was used again; the store refused other bytes under
    the same key, which ended the session.
    """
    taken: dict[str | None, bytes] = {}
    arrived = threading.Semaphore(0)

    def put(grant: Grant, source: Path) -> None:
        if taken.setdefault(grant.url, source.read_bytes()) != source.read_bytes():
            raise Stale("409: was written before, with different bytes")
        arrived.release()

    def address(fence: int, kind: GrantKind, count: int) -> list[Grant]:
        desk.server.granted += 1
        return [Grant(key=f"k{desk.server.granted}", kind=kind, url=f"http://store/{desk.server.granted}")]

    monkeypatch.setattr(transfers, "upload", put)
    monkeypatch.setattr(desk.server, "grants", address)
    desk.server.mood = away
    for step in (1, 2, 3, 4):
        desk.saver.take(snapshot(step))
        assert arrived.acquire(timeout=PATIENCE_S), desk.refusals
    desk.server.mood = lambda: None
    assert desk.saver.settle(PATIENCE_S)
    assert not desk.refusals
    assert len(taken) == 4


def test_an_address_that_is_taken_is_given_up_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without it a file whose arrival nobody had heard of ended the session at the next one."""
    monkeypatch.setattr(httpx, "put", lambda *_, **__: httpx.Response(409, text="was written before"))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(transfers.UnusableGrant):
        transfers.upload(Grant(key="k", kind=GrantKind.CHECKPOINT, url="http://store/k"), tmp_path / "file")


def test_an_address_that_does_not_answer_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: with the library's own words, or its error as the cause, the address, which is a permission, was in the log."""

    def slow(url: str, **_: Any) -> None:
        raise httpx.ReadTimeout(f"nothing from {url}")

    monkeypatch.setattr(httpx, "put", slow)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ServerAway, match=r"upload of k: ReadTimeout$") as away:
        transfers.upload(Grant(key="k", kind=GrantKind.CHECKPOINT, url="http://store/k?secret"), tmp_path / "file")
    assert "nothing from" not in "".join(traceback.format_exception(away.value))


def test_messages_wait_for_the_server_and_arrive_in_order(desk: Desk) -> None:
    desk.server.mood = away
    for step in range(1, 40):
        desk.say_step(step)
    desk.server.mood = lambda: None
    desk.outbox.say(lambda seq: Release(lease="l", fence=1, seq=seq, step=39, reason="deadline"), urgent=True)
    assert desk.outbox.close(PATIENCE_S)
    steps = [row.step for m in desk.server.heard if isinstance(m, Report) for row in m.metrics]
    assert steps == list(range(1, 40))
    assert isinstance(desk.server.heard[-1], Release)


def test_what_a_long_outage_leaves_arrives_in_messages_that_the_server_takes(desk: Desk) -> None:
    """Guard: without `MAX_TOGETHER` everything went as one report, which the server refused by its size: the metrics of a
    whole outage were dropped.
    """
    said = [Report(lease="l", fence=1, seq=0, step=n, phase=Phase.TRAIN, samples=(answer(n),)) for n in range(200)]

    def apply_text(report: Report) -> Directive:
        desk.server.mood()
        if len(report.model_dump_json().encode()) > MAX_JSON_BYTES:
            raise Refused("413: the body is too large")
        desk.server.heard.append(report)
        return desk.server.directive

    desk.server.report = apply_text  # type: ignore[method-assign]
    desk.server.mood = away
    for report in said:
        desk.outbox.say(lambda seq, report=report: report.model_copy(update={"seq": seq}))
    desk.server.mood = lambda: None
    assert desk.outbox.close(PATIENCE_S)
    heard = [m for m in desk.server.heard if isinstance(m, Report)]
    assert [sample.step for report in heard for sample in report.samples] == list(range(200))
    assert max(len(report.as_line()) for report in heard) <= MAX_LINE


def test_answers_to_many_prompts_are_lines_that_the_server_reads(tmp_path: Path) -> None:
    """Guard: said in one report, they were longer than any line that is looked at, and lost."""
    assignment = Assignment(job="j", lease="l", fence=1, spec=SPEC, seconds_left=600.0, datasets=())
    session = Session(assignment, Server(tmp_path), tmp_path, Ledger(began=0.0))
    session.sampled(tuple(answer(step) for step in range(16)))
    session._outbox.open()
    assert session._outbox.close(PATIENCE_S)
    session.refused("the test is over")
    lines = (tmp_path / "outbox.jsonl").read_text().splitlines()
    assert sum(len(Report.model_validate_json(line).samples) for line in lines) == 16
    assert max(map(len, lines)) <= MAX_LINE


def test_an_adapter_whose_address_is_taken_goes_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: with one grant for all tries, the one that could not be used was tried until the session's time was over."""
    monkeypatch.setattr(httpx, "put", lambda url, **_: httpx.Response(409 if url == "taken" else 201, text=""))
    (tmp_path / "adapter.zip").write_bytes(b"x")
    addresses = iter(["taken", "free"])

    def grant() -> Grant:
        address = next(addresses)
        return Grant(key=f"key-{address}", kind=GrantKind.ADAPTER, url=address)

    with stamina.set_testing(True, attempts=3):
        assert bring_home(tmp_path / "adapter.zip", grant, PATIENCE_S) == "key-free"


def test_everything_said_is_on_disk_before_it_is_sent(desk: Desk) -> None:
    """Removed: the write in `say`; a server that was off for a whole session would find nothing."""
    desk.server.mood = away
    desk.say_step(7)
    lines = (desk.server.folder / "outbox.jsonl").read_text().splitlines()
    assert any('"step":7' in line for line in lines)


def test_a_stale_lease_stops_everything(desk: Desk) -> None:
    def stale() -> None:
        raise Stale("409: fence 1 is stale")

    desk.server.mood = stale
    desk.say_step(1)
    desk.outbox.close(PATIENCE_S)
    assert desk.ends == ["409: fence 1 is stale"]


def test_a_refused_report_is_dropped_and_said(desk: Desk) -> None:
    """One report that the server cannot read must not keep all later ones back."""
    moods = iter([Refused("422: no")])

    def once() -> None:
        for error in moods:
            raise error

    desk.server.mood = once
    desk.say_step(1)
    desk.server.wait_until(lambda: any(isinstance(m, Report) for m in desk.server.heard))
    assert any("422" in text for text in desk.complaints)
    assert not desk.ends


def test_a_refused_checkpoint_ends_the_session(desk: Desk) -> None:
    desk.server.head = "f" * 64
    desk.saver.take(snapshot(1))
    desk.saver.settle(PATIENCE_S)
    assert "another head" in desk.refusals[0]


def test_directives_reach_the_runner(desk: Desk) -> None:
    desk.server.directive = Directive(action=Action.DRAIN, reason="paused")
    desk.say_step(1)
    desk.server.wait_until(lambda: bool(desk.directives))
    assert desk.directives[0].action is Action.DRAIN


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes fails with an OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_one_checkpoint_and_no_more(desk: Desk) -> None:
    """Removed: the `except OSError` in `_write`; the saver's thread would die and nothing would be saved any more."""
    desk.saver.take(snapshot(1))
    assert desk.saver.settle(PATIENCE_S)
    first = desk.server.head
    with files_of_at_most(1_000_000):
        desk.saver.take(snapshot(2, size=1_000_000))
        assert not desk.saver.settle(PATIENCE_S)
    assert "could not be written" in desk.saver.problem
    assert any("free some space" in text for text in desk.complaints)
    assert list((desk.server.folder / "spool").iterdir()) == []
    desk.saver.take(snapshot(3))
    assert desk.saver.settle(PATIENCE_S)
    newest = [m for m in desk.server.heard if isinstance(m, Offer)][-1]
    assert (newest.manifest.step, newest.manifest.parent) == (3, first)
    stored, _ = checkpoint_file.load(desk.server.folder / f"store-{desk.server.granted}", newest.sha256)
    assert stored["w"][0] == 3
