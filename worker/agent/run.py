"""Claims a lease and runs its session. A session may continue with another lease, in a new process."""

from __future__ import annotations

import sys
from pathlib import Path

import stamina

from worker.agent import offline
from worker.agent.inputs import forget_inputs
from worker.agent.limits import Limits, ended_after
from worker.agent.offline import KeepFolder
from worker.agent.session import Session, log
from worker.agent.time_ledger import Ledger
from worker.agent.uplink import HttpUplink, ServerAway, StdoutUplink, UplinkError
from worker.shared.messages import Assignment, Ticket
from worker.shared.process import become


def run(ticket: Ticket, home: Path, *, began: float, limits: Limits | None = None, can_continue: bool = False) -> int:
    """Run one lease in the folder `home`. Returns the exit code of the process. `began` is a monotonic time.

    With `can_continue`, another lease that the server has for this session replaces this process.
    """
    ledger = Ledger(began=began)
    if (assignment := offline.assignment_of(ticket, began)) is not None:
        keep = KeepFolder(Path(assignment.keep_dir or home / "keep"), assignment)
        return Session(assignment, StdoutUplink(ticket, sys.__stdout__), home, ledger, keep, limits).work()
    uplink = HttpUplink(ticket)
    try:
        assignment = _start(uplink, ticket, limits or Limits())
    except UplinkError as error:
        log(f"cannot start: {error}")
        return 1
    session = Session(assignment, uplink, home, ledger, limits=limits, can_continue=can_continue)
    code = session.work()
    if code == 0 and session.next is not None:
        log(f"continuing with lease {session.next.lease}")
        become(next_command(session.next, home))
    return code


def next_command(ticket: Ticket, home: Path) -> list[str]:
    """The command that runs this lease in the same folder. Files that the last lease has left there are deleted."""
    forget_inputs(home)
    path = home / "ticket.json"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(ticket.model_dump_json())
    return [sys.executable, *sys.orig_argv[1:-1], str(path)]


def _start(uplink: HttpUplink, ticket: Ticket, limits: Limits) -> Assignment:
    # The probe imports torch. A failure cannot be reported yet, since there is no lease, so the process just ends.
    with ended_after(limits.imports_s):
        request = offline.start_request()
    for attempt in stamina.retry_context(on=ServerAway, attempts=None, timeout=ticket.budget_s, wait_max=15.0):
        with attempt:
            return uplink.start(request)
    raise ServerAway("the server did not answer during this session")
