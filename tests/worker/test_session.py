"""Outbox and saver against a server that answers, stays away, refuses, or has moved on. Waits are on events, never on
time."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from orchestrator.entrypoints.http.middleware import MAX_JSON_BYTES
from orchestrator.services.worker_messages import MAX_LINE
from tests.helpers.session_desk import PATIENCE_S, SPEC, Desk, Server, files_of_at_most, snapshot
from tests.helpers.upload_server import UploadServer
from tests.helpers.waiting import wait_for
from worker.agent import transfers
from worker.agent.saver import upload_with_retry
from worker.agent.session import Session
from worker.agent.time_ledger import Ledger
from worker.agent.uplink import Refused, ServerAway, Stale
from worker.shared import checkpoint_file
from worker.shared.messages import (
    Action,
    Assignment,
    Directive,
    Grant,
    GrantKind,
    Offer,
    Phase,
    Release,
    Report,
    Sample,
)


@pytest.fixture
def store() -> Iterator[UploadServer]:
    with UploadServer() as server:
        yield server


def answer(step: int) -> Sample:
    return Sample(step=step, prompt="p", text="x" * 100_000)


def away() -> None:
    raise ServerAway("nobody there")


def test_checkpoints_form_a_chain(desk: Desk) -> None:
    for step in (1, 2, 3):
        desk.saver.take(snapshot(step))
        assert desk.saver.wait_until_saved(PATIENCE_S)
    offers = [m for m in desk.server.heard if isinstance(m, Offer)]
    assert [o.manifest.parent for o in offers] == [None, offers[0].sha256, offers[1].sha256]
    assert list((desk.server.folder / "spool").iterdir()) == []


def test_a_server_that_is_away_gets_the_oldest_and_the_newest(desk: Desk) -> None:
    """Removed: dropping what lies between; the disk would fill for as long as the server is off."""
    desk.server.mood = away
    desk.server.grants_in_advance = True
    for step in (1, 2, 3, 4):
        desk.saver.take(snapshot(step))
    assert not desk.saver.wait_until_saved(0.2)
    assert len(list((desk.server.folder / "spool").iterdir())) == 2
    desk.server.mood = lambda: None
    assert desk.saver.wait_until_saved(PATIENCE_S)
    steps = [m.manifest.step for m in desk.server.heard if isinstance(m, Offer)]
    assert steps[0] == 1
    assert steps[-1] == 4
    assert not desk.refusals


def test_a_server_that_returns_gets_no_checkpoint_that_is_being_dropped(desk: Desk) -> None:
    """Guard: dropped without the saver's lock, it was sent and committed meanwhile, and the newest one was refused."""

    def late(offer: Offer) -> None:
        desk.server.mood = lambda: None
        with desk.server.progress:
            desk.server.progress.wait_for(lambda: desk.server.head == offer.sha256, 0.5)

    desk.before_withdrawal = late
    desk.server.mood = away
    desk.server.grants_in_advance = True
    for step in (1, 2, 3):
        desk.saver.take(snapshot(step))
    assert desk.saver.wait_until_saved(PATIENCE_S)
    assert not desk.refusals


def test_an_address_that_has_taken_a_file_is_given_no_other(desk: Desk, store: UploadServer) -> None:
    """Guard: the grant of a checkpoint that was dropped after its upload was used again; the store refused other bytes
    under the same key, which ended the session.
    """
    desk.server.grants_in_advance, desk.server.store_url = True, store.url
    desk.server.mood = away
    for step in (1, 2, 3, 4):
        desk.saver.take(snapshot(step))
        assert store.arrived.acquire(timeout=PATIENCE_S), desk.refusals
    desk.server.mood = lambda: None
    assert desk.saver.wait_until_saved(PATIENCE_S)
    assert not desk.refusals
    assert len(store.taken) == 4


def test_an_address_that_is_taken_is_given_up_for_another(tmp_path: Path, store: UploadServer) -> None:
    """Guard: without it a file whose arrival nobody had heard of ended the session at the next one."""
    store.taken["/k"] = b"other bytes"
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(transfers.UnusableGrant):
        transfers.upload(Grant(key="k", kind=GrantKind.CHECKPOINT, url=f"{store.url}/k"), tmp_path / "file")


def test_an_address_that_does_not_answer_is_not_told(tmp_path: Path) -> None:
    """Guard: with the library's own words, or its error as the cause, the address, which is a permission, was in the
    log."""
    (tmp_path / "file").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/k?secret"
        grant = Grant(key="k", kind=GrantKind.CHECKPOINT, url=url)
        with pytest.raises(ServerAway, match=r"upload of k: ReadTimeout$") as away:
            transfers.upload(grant, tmp_path / "file", timeout_s=0.1)
    assert away.value.__cause__ is None
    assert "httpx" not in "".join(traceback.format_exception(away.value))


def test_messages_wait_for_the_server_and_arrive_in_order(desk: Desk) -> None:
    desk.server.mood = away
    for step in range(1, 40):
        desk.say_step(step)
    desk.server.mood = lambda: None
    desk.outbox.add(lambda seq: Release(lease="l", fence=1, seq=seq, step=39, reason="deadline"), urgent=True)
    assert desk.outbox.close(PATIENCE_S)
    steps = [row.step for m in desk.server.heard if isinstance(m, Report) for row in m.metrics]
    assert steps == list(range(1, 40))
    assert isinstance(desk.server.heard[-1], Release)


def test_a_long_outage_is_reported_in_messages_that_the_server_takes(desk: Desk) -> None:
    """Guard: without `MAX_TOGETHER` everything went as one report, which the server refused by its size: the metrics of
    a whole outage were dropped.
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
        desk.outbox.add(lambda seq, report=report: report.model_copy(update={"seq": seq}))
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


def test_an_adapter_whose_address_is_taken_goes_to_another(tmp_path: Path, store: UploadServer) -> None:
    """Guard: with one grant for all tries, the one that could not be used was tried until the session's time was
    over."""
    store.taken["/taken"] = b"other bytes"
    (tmp_path / "adapter.zip").write_bytes(b"x")
    addresses, words = iter(["taken", "free"]), list[str]()

    def grant() -> Grant:
        address = next(addresses)
        return Grant(key=f"key-{address}", kind=GrantKind.ADAPTER, url=f"{store.url}/{address}")

    with stamina.set_testing(True, attempts=3):
        key = upload_with_retry(tmp_path / "adapter.zip", grant, transfers.upload, words.append, PATIENCE_S)
    assert key == "key-free"
    assert words == ["the adapter is not in the store yet: upload of key-taken: the file already exists", ""]


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
    assert any("422" in text for text in desk.warnings)
    assert not desk.ends


def test_a_refused_checkpoint_ends_the_session(desk: Desk) -> None:
    desk.server.head = "f" * 64
    desk.saver.take(snapshot(1))
    desk.saver.wait_until_saved(PATIENCE_S)
    assert "another head" in desk.refusals[0]


def test_directives_reach_the_runner(desk: Desk) -> None:
    desk.server.directive = Directive(action=Action.DRAIN, reason="paused")
    desk.say_step(1)
    desk.server.wait_until(lambda: bool(desk.directives))
    assert desk.directives[0].action is Action.DRAIN


def test_a_full_disk_costs_one_checkpoint_and_no_more(desk: Desk) -> None:
    """The next one takes its place.

    Removed: the `except OSError` in `_write`; the saver's thread would die and nothing would be saved any more.
    """
    desk.saver.take(snapshot(1))
    assert desk.saver.wait_until_saved(PATIENCE_S)
    first = desk.server.head
    with files_of_at_most(1_000_000):
        desk.saver.take(snapshot(2, size=1_000_000))
        wait_for(lambda: "could not be written" in desk.saver.problem, "the failed write")
        assert not desk.saver.wait_until_saved(0.3)
    assert "could not be written" in desk.saver.problem
    assert any("free some space" in text for text in desk.warnings)
    assert list((desk.server.folder / "spool").iterdir()) == []
    desk.saver.take(snapshot(3))
    assert desk.saver.wait_until_saved(PATIENCE_S)
    newest = [m for m in desk.server.heard if isinstance(m, Offer)][-1]
    assert (newest.manifest.step, newest.manifest.parent) == (3, first)
    stored, _ = checkpoint_file.load(desk.server.folder / f"store-{desk.server.granted}", newest.sha256)
    assert stored["w"][0] == 3
