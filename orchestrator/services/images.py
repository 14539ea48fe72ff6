"""Which image an account's machines ran when they were checked, and which one a later session finds."""

from __future__ import annotations

from orchestrator.domain import diagnosis
from orchestrator.domain.model import Job, Lease
from orchestrator.ports.repository import Transaction


def note_image(tx: Transaction, lease: Lease, job: Job, image: str, now: float) -> None:
    """A session has said which image it runs on: where that is not the one which was checked, its account and job say so."""
    account = tx.account(lease.account_id)
    if account is None:
        return
    noticed = diagnosis.noticed(account.image, "gpu" if lease.on_gpu else "cpu", image, now)
    if noticed is not None:
        account.image = noticed
        tx.save_account(account)
        words = diagnosis.changed(noticed, account.provider)
        job.note("image.changed", at=now, actor="worker", reason=words, lease_id=lease.id)
