"""Machines that have joined: their driver and their agent, with light processes in place of workers and no network."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.domain.accounts import Account
from orchestrator.ports.providers import Handle, LaunchRequest, Liveness
from orchestrator.providers.joined import PATIENCE_S, SILENT_S, JoinedProvider
from orchestrator.testing import FakeClock
from orchestrator.testing.environments import driver_env
from tests.helpers.waiting import first_true
from worker.joined import membership, readings
from worker.joined.agent import Agent
from worker.joined.membership import Membership
from worker.joined.prepare import Prepared
from worker.joined.server import Away
from worker.joined.sessions import Sessions
from worker.shared.joined_messages import Gpu, MachineReport, Orders, SessionReport

ACCOUNT = Account(id="account-1", provider="joined", member_id="ann", name="box", config={}, created_at=0.0)
NOTES = (
    "import json, os, pathlib, sys, time; from worker.shared.process import process_birth as b; p = os.getpid();"
    "pathlib.Path('pid.json').write_text(json.dumps({'pid': p, 'born': b(p)}));"
)
RUNS = f"{NOTES} print('up', flush=True); time.sleep(60)"
LEAVES = "pathlib.Path('outbox.jsonl').write_text('1' * 300000 + '\\n' + '2' * 300000 + '\\n')"
FAILS = f"{NOTES} print('no room', flush=True); {LEAVES}; sys.exit(2)"
CARD = Gpu(name="T4", total_bytes=16 << 30)


class Box:
    """A machine and its server's driver. `cut` loses answers or whole calls, as a network does."""

    def __init__(self, folder: Path, code: str = RUNS, gpus: int = 0, shares: int = 1) -> None:
        self.clock, self.folder, self.code = FakeClock(), folder, code
        self.news, self.launched, self.cut, self.gpus = 0, [], "", gpus
        self.shares, self.address, self.after = shares, "http://server", lambda: None
        self.boot, self.children = membership.boot_id(), []
        self.serve()
        self.work()

    def serve(self) -> None:
        """A new process of the server, over the same folder."""
        self.driver = JoinedProvider(driver_env(self.folder / "server", clock=self.clock, notify=self._noticed))

    def _noticed(self) -> None:
        self.news += 1

    def work(self) -> None:
        """A new agent, over the same folder."""
        place = Membership(
            server=self.address,
            account=ACCOUNT.id,
            name="box",
            token="t",
            instance="i",
            python=sys.executable,
            shares=self.shares,
        )
        self.agent = Agent(
            membership=place,
            folder=self.folder,
            server=self,  # pyright: ignore[reportArgumentType]  the calls that it needs
            sessions=Sessions(self.folder / "sessions", self.boot, self._launch, self.clock.now),
            boot=self.boot,
            say=lambda _: None,
            measure=lambda _: [(str(n), CARD) for n in range(self.gpus)],
            prepared=Prepared(python="3.11.0", torch="2"),
            problem="",
        )

    def _launch(self, home, variables):
        self.launched.append((home.name, dict(variables)))
        with (home / "output.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", self.code], cwd=home, stdout=log, stderr=log, start_new_session=True
            )
        self.children.append(child)
        return child

    def report(self, report):
        if self.cut == "call":
            raise Away("no route")
        orders = self.driver.exchange(ACCOUNT, type(report).model_validate_json(report.model_dump_json()))
        self.after()
        if self.cut == "answer":
            raise Away("no answer")
        return Orders.model_validate_json(orders.model_dump_json())

    def step(self) -> None:
        """One exchange, which may fail, and those that follow at once."""
        try:
            while self.agent.step():
                pass
        except Away:
            return

    def order(self, lease: str = "lease-1") -> Handle:
        request = LaunchRequest(
            lease_id=lease, job_id="job-1", account=ACCOUNT, token="secret", server_url="http://x", budget_s=60.0
        )
        return Handle(lease_id=lease, account=ACCOUNT, external_id=self.driver.launch(request))

    def liveness(self, handle: Handle) -> Liveness:
        return self.driver.observe([handle])[0].liveness

    def until_noted(self, lease: str = "lease-1") -> int:
        """The id of the session's process, once it has noted it."""
        note = self.folder / "sessions" / lease / "pid.json"
        assert first_true(lambda: note.exists() and note.read_text(), 20, 0.01)
        return json.loads(note.read_text())["pid"]

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def make(tmp_path):
    made = []

    def box(**options) -> Box:
        made.append(Box(tmp_path, **options))
        return made[-1]

    yield box
    for each in made:
        each.end()


@pytest.mark.parametrize("cut", ["", "call", "answer"])
@pytest.mark.parametrize("restarts", ["", "server", "agent", "both"])
def test_an_order_is_carried_out_once_whatever_is_lost(make, cut, restarts):
    """Guards: without `record.json` before the process the agent started the session again; without the order's file a
    new server forgot it; without the record in `launch` it was ordered twice."""
    box = make()
    box.step()
    handle = box.order()
    box.cut = cut
    box.step()
    if restarts in ("server", "both"):
        box.serve()
    if restarts in ("agent", "both"):
        box.until_noted() if box.launched else None
        box.work()
    box.cut = ""
    box.step()
    box.order()
    box.step()
    box.until_noted()
    box.step()
    assert [lease for lease, _ in box.launched] == ["lease-1"]
    assert box.liveness(handle) is Liveness.RUNNING
    assert not list((box.folder / "server").rglob("order.json")), "the ticket is deleted once it was received"


def test_the_same_order_twice_starts_one_session(make):
    """Guard: without the look at the record in `start` the second order started a second process."""
    box = make()
    box.step()
    box.order()
    orders = box.driver.exchange(ACCOUNT, MachineReport(protocol=1, offer=readings.offer([], 1)))
    for _ in range(2):
        box.agent._carry_out(orders, [], "")
    assert [lease for lease, _ in box.launched] == [*box.agent.sessions.running()] == ["lease-1"]


def test_an_agent_that_died_between_record_and_process_starts_nothing(make):
    """Guard: with the record written after the process, the next agent started a second one."""
    box = make()
    box.step()
    handle = box.order()
    box._launch = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    box.work()
    with pytest.raises(KeyboardInterrupt):
        box.agent.step()
    del box._launch
    box.work()
    box.step()
    assert (box.launched, box.liveness(handle)) == ([], Liveness.RUNNING)
    box.clock.tick(30)
    box.step()
    assert (box.launched, box.liveness(handle)) == ([], Liveness.ENDED)


def test_a_machine_that_was_restarted_reports_its_sessions_as_gone(make):
    """Guard: without the boot's id in the record, a process with a reused id counts as the session."""
    box = make()
    box.step()
    handle = box.order()
    box.step()
    box.until_noted()
    box.step()
    box.boot = "another"
    box.work()
    box.step()
    seen = box.driver.observe([handle])[0]
    assert (seen.liveness, seen.detail, seen.failed) == (Liveness.ENDED, "its machine was restarted", False)


def test_a_session_is_known_again_by_the_next_agent_and_ends(make):
    box = make()
    box.step()
    handle = box.order()
    box.step()
    pid = box.until_noted()
    box.work()
    box.step()
    assert box.driver.observe([handle])[0].external_id == str(pid)
    box.driver.stop(handle)
    box.driver.stop(handle)
    assert box.driver.has_orders(ACCOUNT.id)
    box.step()
    box.children[0].wait(20)
    box.step()
    assert box.liveness(handle) is Liveness.ENDED
    box.driver.clean_up(handle)
    box.step()
    assert not list((box.folder / "sessions").iterdir())
    assert box.driver.log(handle, 0, 100) == b"up\n"
    box.driver.delete_log(handle)
    assert not box.driver.log(handle, 0, 100)


def test_what_a_session_leaves_arrives_before_its_end(make):
    """Guard: with `_lags` always false the session ended at the server before its last messages were there."""
    box = make(code=FAILS)
    box.step()
    handle = box.order()
    box.step()
    box.children[0].wait(20)
    left = {}

    def look():
        if box.liveness(handle) is Liveness.ENDED:
            left.setdefault("messages", box.driver.collect_outputs(handle).messages)

    box.after, box.cut = look, "answer"
    for _ in range(4):
        box.step()
    box.cut = ""
    box.step()
    assert left == {"messages": ("1" * 300_000, "2" * 300_000)}
    seen = box.driver.observe([handle])[0]
    assert (seen.liveness, seen.failed) == (Liveness.ENDED, True)
    assert seen.detail == "the process ended with exit code 2: no room"
    assert box.driver.log(handle, 0, 100) == b"no room\n"
    assert box.news >= 2


def test_a_silent_machine_is_unknown_and_later_judged_by_reports(make):
    """Guards: without `_silence` a machine without power ran its sessions until their time limit; without `_patience`
    half an hour without a network cost the job its session."""
    box = make()
    box.step()
    handle = box.order()
    box.step()
    assert box.driver.capacity(ACCOUNT).slots == 1
    box.clock.tick(SILENT_S + 1)
    assert box.liveness(handle) is Liveness.UNKNOWN
    assert box.driver.capacity(ACCOUNT).closed_reason == "its machine has not called for 1 minutes"
    box.clock.tick(1800)
    assert box.liveness(handle) is Liveness.UNKNOWN
    box.clock.tick(PATIENCE_S)
    assert box.liveness(handle) is Liveness.UNSEEN
    box.serve()
    assert box.liveness(handle) is Liveness.UNKNOWN, "a new server gives it time to call"
    box.step()
    assert box.liveness(handle) is Liveness.RUNNING


def test_a_session_that_is_stopped_before_it_was_fetched_never_starts(make):
    box = make()
    box.step()
    handle = box.order()
    box.driver.stop(handle)
    box.step()
    assert (box.launched, box.liveness(handle)) == ([], Liveness.ENDED)


def test_a_session_that_its_machine_lost_has_ended(make):
    box = make()
    box.step()
    handle = box.order()
    box.step()
    box.until_noted()
    box.end()
    box.folder = box.folder / "new"
    box.folder.mkdir()
    box.work()
    box.step()
    seen = box.driver.observe([handle])[0]
    assert (seen.liveness, seen.detail) == (Liveness.ENDED, "its machine no longer knows this session")


def test_one_slot_for_each_gpu_and_share(make):
    box = make(gpus=2, shares=2)
    box.step()
    room = box.driver.capacity(ACCOUNT)
    assert (room.slots, room.gpu, room.memory_bytes) == (4, True, 8 << 30)
    for number in range(5):
        box.order(f"lease-{number}")
    box.step()
    given = [(v["CUDA_VISIBLE_DEVICES"], v["WORKER_GPU_MEMORY_BYTES"]) for _, v in box.launched]
    assert given == [(gpu, str(8 << 30)) for gpu in ("0", "0", "1", "1")]
    seen = box.driver.observe([Handle(lease_id="lease-4", account=ACCOUNT, external_id=None)])[0]
    assert (seen.liveness, seen.detail) == (Liveness.ENDED, "all slots of its machine are in use")
    fewer = replace(ACCOUNT, config={"slots": 1})
    assert box.driver.capacity(fewer).slots == 1


def test_a_worker_gets_no_token_of_the_machine(make, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")
    monkeypatch.setenv("TRAINHOP_SECRET", "x")
    box = make()
    box.step()
    box.order()
    box.step()
    ((_, variables),) = box.launched
    assert not {"HF_TOKEN", "TRAINHOP_SECRET"} & variables.keys()
    assert (variables["CUDA_VISIBLE_DEVICES"], variables["TRAINHOP_INSTANCE"]) == ("", "i")
    ticket = box.folder / "sessions" / "lease-1" / "ticket.json"
    assert json.loads(ticket.read_text())["server_url"] == "http://server"
    assert ticket.stat().st_mode & 0o077 == 0


def test_a_drained_machine_starts_nothing_and_its_sessions_save(make):
    """Guard: with the sessions asked before the report, the server ordered the next one."""
    box = make()
    box.step()
    handle = box.order()
    box.step()
    box.until_noted()
    sent = []
    box.agent.sessions.signal = lambda lease, number=signal.SIGKILL: sent.append((lease, number))
    membership.ask_to(box.folder, "drain")
    other = box.order("lease-2")
    box.step()
    box.step()
    assert sent == [("lease-1", signal.SIGTERM)]
    assert box.driver.capacity(ACCOUNT).closed_reason == "it was drained for a restart"
    assert (box.liveness(handle), box.liveness(other)) == (Liveness.RUNNING, Liveness.ENDED)
    del box.agent.sessions.signal
    assert membership.asked_to(box.folder, "another boot") == "", "it works again after a restart"


@pytest.mark.parametrize("lease", ["../../server/lease-1", "a/b", "", "A" * 5, "x" * 65])
def test_a_report_cannot_name_a_file(lease):
    with pytest.raises(ValidationError):
        SessionReport(lease=lease, state="running")


def test_a_machine_reports_only_its_own_sessions(make):
    """Guard: without the comparison of accounts a machine ended the sessions of another."""
    box = make()
    box.step()
    handle = box.order()
    box.step()
    other = replace(ACCOUNT, id="account-2")
    report = box.agent
    theirs = SessionReport(lease="lease-1", state="ended", code=0)
    sent = {}

    def exchange(message):
        sent["orders"] = box.driver.exchange(other, message.model_copy(update={"sessions": (theirs,)}))
        return sent["orders"]

    box.report = exchange
    report.step()
    del box.report
    assert box.liveness(handle) is Liveness.RUNNING
    assert sent["orders"].forget == ("lease-1",), "which deletes what it claims to have, on its own disk"


def test_a_machine_that_left_has_no_sessions(make):
    box = make()
    box.step()
    handle = box.order()
    box.driver.forget_machine(ACCOUNT.id)
    assert box.driver.observe([handle])[0].detail == "its machine has left"
    assert box.driver.capacity(ACCOUNT).closed_reason == "its machine has not called yet"
