"""A worker that continues with another lease: the ticket, the folder, the numbers of its messages, the new process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.session_desk import SPEC, Desk, Server
from tests.worker.test_uplink import FINISH, answering
from worker.agent.run import next_command
from worker.agent.session import Session
from worker.agent.time_ledger import Ledger
from worker.shared.messages import Assignment, Finish, Ticket

TICKET = Ticket(lease="lease-1.next", token="thl_2", budget_s=60.0, fence=1)

BECOMES = """
import os, sys, threading, time
from worker.shared.process import become
kept = open(sys.argv[1])
os.set_inheritable(kept.fileno(), True)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("before", os.getpid(), flush=True)
print("unflushed")
shows = "import os; print('after', os.getpid(), sorted(map(int, os.listdir('/proc/self/fd'))))"
become([sys.executable, "-c", shows])
"""


def test_the_ticket_names_the_server_as_this_machine_reaches_it() -> None:
    """Guard: with the server's own address a machine behind a tunnel called nobody."""
    with answering(200, TICKET.model_dump_json()) as uplink:
        found = uplink.finish(FINISH)
    assert found is not None
    assert (found.lease, found.token, found.budget_s) == ("lease-1.next", "thl_2", 60.0)
    assert found.server_url is not None
    assert found.server_url.startswith("http://127.0.0.1:")
    with answering(204, "") as uplink:
        assert uplink.finish(FINISH) is None


def test_a_process_becomes_another_with_its_id_and_nothing_open(tmp_path: Path) -> None:
    """Guard: a file that stays open may hold the memory of a GPU."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", BECOMES, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    before, unflushed, after = done.stdout.splitlines()
    assert unflushed == "unflushed"
    assert before.split()[1] == after.split()[1]
    listed = json.loads(after.partition(" ")[2].partition(" ")[2])
    assert listed == [0, 1, 2, 3], "3 is the folder that the new one lists"


def test_the_next_lease_finds_no_files_of_the_last(tmp_path: Path) -> None:
    """Guard: a checkpoint or data file of the last lease was read in place of the own one."""
    gone = ["dataset-0", "resume.safetensors", ".incoming-dataset-1", "spool/step-4.safetensors"]
    kept = ["outbox.jsonl", "pid.json", "model/config.json", "output.log"]
    for name in (*gone, *kept, "ticket.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    command = next_command(TICKET, tmp_path)
    assert (command[0], command[-1]) == (sys.executable, str(tmp_path / "ticket.json"))
    assert command[1:-1] == sys.orig_argv[1:-1]
    assert Ticket.model_validate_json((tmp_path / "ticket.json").read_text()) == TICKET
    assert (tmp_path / "ticket.json").stat().st_mode & 0o777 == 0o600
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if (tmp_path / name).read_text() != "old"] == []


def test_a_session_that_must_stop_does_not_continue(tmp_path: Path) -> None:
    """Guard: the process became the next one, which knew nothing of the SIGTERM that had come a moment before."""
    server = Server(tmp_path)
    server.next = TICKET
    assignment = Assignment(job="j", lease="lease-1", fence=1, spec=SPEC, seconds_left=600.0, datasets=())
    session = Session(assignment, server, tmp_path, Ledger(began=0.0), can_continue=True)
    session._outbox.open()
    session._outbox.add(lambda seq: FINISH.model_copy(update={"seq": seq, "can_continue": True}), urgent=True)
    assert session._outbox.close(20)
    assert session.next == TICKET
    session._request_stop("drained")
    assert session.next is None
    session.refused("the test is over")


def test_messages_of_the_next_lease_are_numbered_after_those_of_the_last(tmp_path: Path) -> None:
    """Guard: a withdrawn message is named by its number alone, and took one of the other lease along."""
    server = Server(tmp_path)
    first = Desk(server, tmp_path)
    last = first.outbox.add(lambda seq: Finish(lease="lease-1", fence=1, seq=seq, step=1), urgent=True)
    assert first.outbox.close(20)
    second = Desk(server, tmp_path)
    added = second.outbox.add(lambda seq: Finish(lease="lease-1.next", fence=1, seq=seq, step=1), urgent=True)
    assert second.outbox.close(20)
    assert isinstance(last, Finish)
    assert isinstance(added, Finish)
    assert added.seq > last.seq
    lines = (tmp_path / "outbox.jsonl").read_text().splitlines()
    assert {json.loads(line)["lease"] for line in lines} == {"lease-1", "lease-1.next"}
