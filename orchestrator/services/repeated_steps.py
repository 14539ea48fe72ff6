"""Steps that a job trains again after a lost session: they must train on the same rows as before."""

from __future__ import annotations

from orchestrator.domain.jobs import Job, Lease
from orchestrator.ports.repository import Transaction
from worker.shared.manifest import Fidelity
from worker.shared.messages import Report

CHECKSUM = "batch_crc32"
"""The metric with the checksum of an update's rows."""


def note_other_rows(tx: Transaction, lease: Lease, job: Job, message: Report, now: float) -> None:
    """Compare the rows of repeated steps with those that an earlier session reported.

    If they differ, the session is no longer called exact, and the job gets an event.
    """
    rows = {row.step: row.values[CHECKSUM] for row in message.metrics if CHECKSUM in row.values}
    said = lease.fidelity == Fidelity.STATE_EXACT and min(rows, default=0) > lease.first_step + 1
    if not rows or lease.fence <= 1 or said:
        return
    before = tx.reports.earlier_values(job.id, CHECKSUM, min(rows), max(rows), fence=lease.fence)
    step = next((step for step in sorted(rows) if before.get(step, rows[step]) != rows[step]), None)
    if step is None:
        return
    lease.fidelity = Fidelity.STATE_EXACT
    reason = (
        f"step {step} trains on other rows than in an earlier session that was lost; "
        "compare the versions of Trainhop and its packages in both sessions"
    )
    job.note("rows.differ", at=now, actor="server", lease_id=lease.id, reason=reason, step=step)
    tx.jobs.save(job)
