"""A full disk under a session: its messages, its output and its checkpoints wait for room, and training goes on."""

from __future__ import annotations

import io
import json
import resource
from pathlib import Path

import pytest

from tests.helpers.session_desk import PATIENCE_S, Desk, Server, files_of_at_most, snapshot
from tests.helpers.waiting import wait_for
from worker.agent.deadline import Budget, Cadence
from worker.agent.limits import when_there_is_room
from worker.agent.saver import Saver
from worker.agent.streams import SafeOutput
from worker.agent.uplink import ServerAway, StdoutUplink
from worker.shared.messages import Offer, Phase, Report, Ticket

REPORT = Report(lease="l", fence=1, seq=1, step=1, phase=Phase.TRAIN)


def away() -> None:
    raise ServerAway("not now")


def stored(desk: Desk) -> list[int]:
    """The steps of the reports in the outbox's file."""
    lines = (desk.server.folder / "outbox.jsonl").read_text().splitlines()
    return [step for line in lines if (step := json.loads(line)["step"])]


def test_messages_are_delivered_that_cannot_be_stored(desk: Desk) -> None:
    """Guard: without `except OSError` in `_flush` the step that reported ended training."""
    with files_of_at_most(0):
        for step in (1, 2, 3):
            desk.say_step(step)
        desk.server.wait_until(lambda: any(isinstance(m, Report) and m.step == 3 for m in desk.server.heard))
    assert any("could not be stored" in text for text in desk.warnings)


def test_messages_are_stored_as_soon_as_there_is_room(desk: Desk) -> None:
    """The disk fills in the middle of a line, and the server is away.

    Guard: without `_unwritten` the file had half a line, and no later message.
    """
    desk.server.mood = away
    desk.say_step(1)
    size = (desk.server.folder / "outbox.jsonl").stat().st_size
    with files_of_at_most(size + 20):
        for step in (2, 3):
            desk.say_step(step)
    desk.say_step(4)
    assert [step for step in stored(desk) if step] == [1, 2, 3, 4]


def test_an_error_while_reporting_does_not_end_the_reports(tmp_path: Path) -> None:
    """For example of the reading of a card that has failed.

    Guard: without the handler in `_deliver` the thread was dead, and the server took the session for lost.
    """

    class Failing(Desk):
        beats = 0

        def beat(self) -> None:
            self.beats += 1
            if self.beats < 3:
                raise RuntimeError("the card has fallen off the bus")
            super().beat()

    desk = Failing(Server(tmp_path), tmp_path)
    desk.server.wait_until(lambda: bool(desk.server.heard))
    desk.saver.stop()
    assert desk.outbox.close(PATIENCE_S)


def saver_of(desk: Desk, **limits: float) -> Saver:
    desk.saver.stop()
    desk.saver = Saver(
        desk.server.folder / "spool", None, Budget(600.0), Cadence(21_600.0, 600.0), desk, retry_s=0.02, **limits
    )
    desk.outbox._on_offer = desk.saver.on_reply
    return desk.saver


def test_the_last_checkpoint_waits_for_room(desk: Desk) -> None:
    """Guard: without `_keep_in_memory` the steps since the checkpoint before were lost."""
    saver = saver_of(desk)
    with files_of_at_most(1_000_000):
        saver.take(snapshot(2, size=1_000_000))
        wait_for(lambda: "could not be written" in saver.problem, "the failed write")
        assert not saver.wait_until_saved(0.1)
    assert saver.wait_until_saved(PATIENCE_S)
    assert [m.manifest.step for m in desk.server.heard if isinstance(m, Offer)] == [2]
    assert saver.problem == ""


def test_a_disk_that_stays_full_is_given_up(desk: Desk) -> None:
    """Guard: without `room_s` a session waited to the end of its time limit."""
    saver = saver_of(desk, room_s=0.05)
    with files_of_at_most(1_000_000):
        saver.take(snapshot(2, size=1_000_000))
        assert not saver.wait_until_saved(PATIENCE_S)
        assert "could not be written" in saver.problem
        assert not saver._has_unsaved


def test_an_unknown_error_does_not_end_the_saver(desk: Desk) -> None:
    """Guard: without the handler in `_work`, `take` waited for ever at the next checkpoint."""
    saver = saver_of(desk)
    bad = snapshot(1)

    def fails() -> None:
        raise RuntimeError("CUDA error")

    object.__setattr__(bad, "ready", fails)
    saver.take(bad)
    saver.take(snapshot(2))
    assert saver.wait_until_saved(PATIENCE_S)
    assert any("CUDA error" in text for text in desk.warnings)


def test_output_that_cannot_be_written_raises_nothing(tmp_path: Path) -> None:
    """Guard: with the file itself, `print` of a step ended training."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert soft != 0
    assert hard != 0
    with (tmp_path / "log").open("w") as file:
        out = SafeOutput(file)
        with files_of_at_most(0):
            print("step 1 loss 1.0" * 10_000, file=out, flush=True)
    closed = SafeOutput(file)
    print("step 2", file=closed, flush=True)


def test_work_that_can_be_repeated_waits_for_room() -> None:
    """Guard: without it, the export of the adapter ended the session, and another one had to load everything again."""
    tried, slept = list[int](), list[float]()

    def work() -> str:
        tried.append(1)
        if len(tried) < 3:
            raise OSError(28, "No space left on device")
        return "done"

    assert when_there_is_room(work, sleep=slept.append) == "done"
    assert len(slept) == 2
    tried.clear()
    with pytest.raises(OSError, match="No space"):
        when_there_is_room(work, patience_s=0.0, sleep=slept.append)
    with pytest.raises(ZeroDivisionError):
        when_there_is_room(lambda: str(1 / 0), sleep=slept.append)


class Torn(io.StringIO):
    """Takes the first half of the first line, as a disk that becomes full."""

    is_full = True

    def write(self, text: str, /) -> int:
        if self.is_full:
            self.is_full = False
            super().write(text[: len(text) // 2])
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_line_of_output_is_sent_again_whole() -> None:
    """Guard: without `_is_torn` the second try was glued to the first, and a reader skipped both."""
    out = Torn()
    uplink = StdoutUplink(Ticket(lease="l", token="t", budget_s=60.0), out)
    with pytest.raises(ServerAway, match="No space"):
        uplink.report(REPORT)
    uplink.report(REPORT)
    torn, whole = out.getvalue().splitlines()
    assert whole.startswith(torn)
    assert len(whole) > len(torn)
