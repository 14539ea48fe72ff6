"""Claims a lease and runs its session."""

from __future__ import annotations

import sys
from pathlib import Path

import stamina

from worker.agent import offline
from worker.agent.limits import Limits, ended_after
from worker.agent.offline import KeepFolder
from worker.agent.session import Session, log
from worker.agent.time_ledger import Ledger
from worker.agent.uplink import HttpUplink, ServerAway, StdoutUplink, UplinkError
from worker.shared.messages import Assignment, Ticket


def run(ticket: Ticket, home: Path, *, began: float, limits: Limits | None = None) -> int:
    """Run one lease in the folder `home`. Returns the exit code of the process. `began` is a monotonic time."""
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
    return Session(assignment, uplink, home, ledger, limits=limits).work()


def _start(uplink: HttpUplink, ticket: Ticket, limits: Limits) -> Assignment:
    # The probe imports torch. A failure cannot be reported yet, since there is no lease, so the process just ends.
    with ended_after(limits.imports_s):
        request = offline.start_request()
    for attempt in stamina.retry_context(on=ServerAway, attempts=None, timeout=ticket.budget_s, wait_max=15.0):
        with attempt:
            return uplink.start(request)
    raise ServerAway("the server did not answer during this session")
