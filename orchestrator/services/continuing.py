"""The evaluation that follows a training job, in the session that has trained it.

It gets a lease of its own, with a fence, a token and the rest of the session's time. So all that is true of a lease is
true of it: if the machine is lost before the evaluation has begun, or in it, the lease expires and the evaluation waits
for another machine. The provider knows the session by the lease for which it was launched.
"""

from __future__ import annotations

from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.lifecycle import LeaseState
from orchestrator.domain.scheduling import LAST_SAVE_S, SAVES_TO_SPARE, Placement
from orchestrator.ports.repository import Transaction
from orchestrator.services import evaluation_times
from orchestrator.services.capacity import not_allowed
from orchestrator.services.context import Context
from orchestrator.services.dispatch import create_lease
from orchestrator.services.leases import BEFORE_TRAINING
from worker.shared.job_spec import JobSpec


def grant(ctx: Context, tx: Transaction, finished: Lease, evaluation: Job, now: float) -> Lease | None:
    """Lease the evaluation to the session of a finished lease, in the transaction that ends that one.

    None if nothing may start on its account any more, or if the evaluation is not expected to fit into the session's
    time. A machine that cannot call has not asked for it.
    """
    account = tx.accounts.get(finished.account_id)
    if account is None or not_allowed(ctx, account):
        return None
    left_s = min(finished.budget_s, finished.created_at + finished.budget_s - now)  # the clock may have been set back
    needed_s = _needed_s(tx, finished, JobSpec.model_validate(evaluation.spec))
    if needed_s is None or needed_s > left_s:
        return None
    here = Placement(job_id=evaluation.id, account_id=finished.account_id, provider=finished.provider, budget_s=left_s)
    return create_lease(ctx, tx, here, now, offline=False, actor="server", before=finished)


def _needed_s(tx: Transaction, finished: Lease, spec: JobSpec) -> float | None:
    """Seconds for the start, the evaluation and its saves. A model takes no longer than the start of the training."""
    unit_time = evaluation_times.typical_unit_time(tx, spec)
    work_s = evaluation_times.seconds(spec, unit_time, finished.seconds_per_step, gpu=finished.on_gpu)
    if work_s is None:
        return None
    start_s = sum(finished.ledger.get(phase, 0.0) for phase in BEFORE_TRAINING)
    return evaluation_times.loads(spec) * start_s + work_s + SAVES_TO_SPARE * LAST_SAVE_S


def granted_before(tx: Transaction, finished: Lease) -> Lease | None:
    """The lease that `grant` has written, if its worker has not begun: the reply with its ticket was lost."""
    lease = tx.leases.get(finished.next_id)
    return lease if lease is not None and lease.state is LeaseState.PROVISIONING else None
