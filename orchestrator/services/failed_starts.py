"""Sessions that ended before their first step for a known cause.

This module decides what people read about them, how long a job waits, and when it stops.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace

from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.domain.scheduling import retry_at
from orchestrator.ports.repository import Transaction
from worker.shared import causes

TRIES = 3
"""A job stops after this many sessions without a step for the same cause."""
WHOLE_SESSIONS = 2
"""A job stops after this many sessions without a step that used up their whole time."""
WAITS_S = (60.0, 300.0, 1_800.0)
"""Delay of the next try, by how many sessions in a row made no step for any cause."""
NEARLY_WHOLE = 0.9
"""A session that used this part of its time counts as a whole one."""
SMOKES = 2
"""An account rests after this many failures of the smoke step on one image."""
SMOKES_ON_ANY = 4
"""An account rests after this many failures of the smoke step, each on another image."""
SMOKE_REST_S = 86_400.0
"""One day, because images change daily."""
LOOKED_BACK = 50
"""Failures of the smoke step are counted in this many newest sessions of an account."""


@dataclass(frozen=True)
class Explanation:
    """Why a session ended, as its worker, its provider or this server says.

    `cause` is the reported reason why it made no step, and is ignored if it made one. `has_remedy`: `detail` says what
    can be done.
    """

    detail: str
    cause: str = ""
    has_remedy: bool = False


@dataclass(frozen=True, kw_only=True)
class Words:
    """What happened, and what a person can do about it. Both without a full stop."""

    what: str
    remedy: str


_WORDS = {
    causes.LAUNCH: Words(
        what="the provider refused to start the session", remedy="fix what it reports, then retry the job"
    ),
    causes.INPUT: Words(
        what="a staged file did not arrive on the machine", remedy="retry the job later, or run it on another account"
    ),
    causes.INSTALL: Words(
        what="the packages could not be installed",
        remedy="update trainhop if packages conflict, or check the machine's internet access, then retry the job",
    ),
    causes.SMOKE: Words(
        what="training does not work on the image of this machine",
        remedy="update trainhop, or find the cause with `trainhop doctor`",
    ),
    causes.GPU: Words(
        what="the machine has no usable GPU", remedy="choose a machine with a GPU, or set `backend: auto`"
    ),
    causes.MEMORY: Words(
        what="the job does not fit into the memory of the machine",
        remedy="use a larger machine, a smaller base model, adapter: qlora, or a shorter sequence_len",
    ),
    causes.MODEL: Words(
        what="the base model could not be downloaded",
        remedy=(
            "check that the machine can reach Hugging Face and that your token can read the model, then retry the job"
        ),
    ),
    causes.DATA: Words(
        what="the training data or the checkpoint could not be downloaded",
        remedy="check that the machine can reach the store, then retry the job",
    ),
    causes.IMPORTS: Words(
        what="importing the training libraries took too long",
        remedy="update trainhop, or run the job on another account",
    ),
    causes.GPUS: Words(
        what="the processes of the GPUs could not connect to each other",
        remedy="run the job on an account with single-GPU machines",
    ),
    causes.DISK: Words(
        what="the disk of this machine is full", remedy="free some space, or choose a smaller base model"
    ),
    causes.START: Words(
        what="the script that starts the worker failed",
        remedy="read the session's output and update trainhop, then retry the job",
    ),
    causes.NO_STEP: Words(
        what="the session ended without a step",
        remedy="read the session's output, and allow longer sessions or choose a smaller base model",
    ),
}


def _words(cause: str) -> Words:
    """Texts for the cause. A cause that only a newer worker knows is shown as it is."""
    unknown = Words(what=f"the session ended before its first step ({cause})", remedy="read the session's output")
    return _WORDS.get(cause, unknown)


def sentence(why: Explanation) -> str:
    """One sentence: what happened, what the session reported, and what can be done. Nothing appears twice."""
    words = _words(why.cause)
    detail_text = why.detail.strip().rstrip(".")
    if why.has_remedy:
        return detail_text
    cause_text = detail_text
    if words.what not in detail_text:
        cause_text = f"{words.what} ({detail_text})" if detail_text else words.what
    return cause_text if words.remedy in detail_text else f"{cause_text}: {words.remedy}"


def _cause_of(lease: Lease, reported: str) -> str:
    """Why an ended session made no step. Empty if it made one, or if the cause is unknown.

    The worker's own clock says how long it worked, because a server that was away gets the report of a short session
    long after it.
    """
    if lease.step > lease.first_step:
        return ""
    if reported or lease.end_reason in {EndReason.PAUSED, EndReason.CANCELLED}:
        return reported
    worked_s = sum(lease.ledger.values())
    return causes.NO_STEP if worked_s >= NEARLY_WHOLE * lease.budget_s else ""


def close(tx: Transaction, lease: Lease, state: LeaseState, end: EndReason, why: Explanation, *, at: float) -> None:
    """End a session. If it made no step for a known cause, its detail says so in words."""
    lease.end(state, end, at=at, detail=why.detail)
    lease.cause = _cause_of(lease, why.cause)
    if lease.cause:
        at_work = lease.cause == causes.NO_STEP and lease.started_at is not None
        parts = [f"last phase: {lease.phase}" if at_work else "", why.detail]
        lease.detail = sentence(replace(why, detail="; ".join(filter(None, parts)), cause=lease.cause))
    tx.leases.save(lease)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The consequence of an ended session for its job. `stop` says in words why no further session makes sense."""

    retry_at: float
    counts: bool
    stop: str = ""


def weigh(tx: Transaction, lease: Lease, job: Job, at: float, *, counts: bool) -> Verdict:
    """Judge a session whose end has just been written. A session that counts brings its job nearer to failing.

    A fault of the machine's image does not count against the job: the account rests, and the job is at once free for
    other accounts.
    """
    end = lease.end_reason
    assert end is not None
    if lease.cause == causes.SMOKE:
        _rest(tx, lease, at)
        return Verdict(retry_at=at, counts=False)
    if not lease.cause:
        in_a_row = job.failures_in_a_row if end is EndReason.FAILED else job.losses_in_a_row
        return Verdict(retry_at=retry_at(end, in_a_row, at) if counts else at, counts=counts)
    before = _since_the_last_step(tx, job, before=lease.fence)
    alike = 1 + sum(one.cause == lease.cause for one in before)
    return Verdict(retry_at=_again_at(lease, before, at), counts=counts, stop=_enough(lease, alike))


def _again_at(lease: Lease, before: list[Lease], at: float) -> float:
    """When the next try may begin. A session that used its whole time causes no delay."""
    if lease.cause == causes.NO_STEP:
        return at
    return at + WAITS_S[min(sum(bool(one.cause) for one in before), len(WAITS_S) - 1)]


def too_small_at(tx: Transaction, job: Job) -> frozenset[str]:
    """Accounts with machines that had too little memory for the job in its sessions since its last step."""
    if not job.losses_in_a_row:
        return frozenset()
    return frozenset(one.account_id for one in _since_the_last_step(tx, job) if one.cause == causes.MEMORY)


def _since_the_last_step(tx: Transaction, job: Job, before: float = math.inf) -> list[Lease]:
    """The job's ended sessions, of fences below `before`, back to the last that made a step, newest first.

    At most as many as the job has counted: a resume or retry by a person resets the count.
    """
    newest_first = sorted((one for one in tx.leases.of_job(job.id) if one.fence < before), key=lambda one: -one.fence)
    counted = job.losses_in_a_row + job.failures_in_a_row
    found = list[Lease]()
    for one in [one for one in newest_first if _counted(one)][:counted]:
        if one.step > one.first_step:
            break
        found.append(one)
    return found


def _counted(lease: Lease) -> bool:
    """Whether the session counted toward the failure of its job."""
    ends = {EndReason.LOST, EndReason.UNFIT, EndReason.FAILED}
    return lease.cause != causes.SMOKE and (bool(lease.cause) or lease.end_reason in ends)


def _enough(lease: Lease, times: int) -> str:
    """Why the job stops, or an empty text."""
    if lease.cause == causes.NO_STEP:
        all_of_them = f"{times} sessions ended without a step"
        return lease.detail.replace(_words(lease.cause).what, all_of_them) if times >= WHOLE_SESSIONS else ""
    return f"stopped after {times} sessions without a step, because {lease.detail}" if times >= TRIES else ""


def _rest(tx: Transaction, lease: Lease, at: float) -> None:
    """Suspend an account if the smoke step keeps failing on its image.

    The suspension ends when a person checks the account, the image changes, or its time is over.
    """
    account = tx.accounts.get(lease.account_id)
    failed = _smokes(tx, lease)
    alike = sum(one.image == lease.image for one in failed)
    if account is None or (alike < SMOKES and len(failed) < SMOKES_ON_ANY):
        return
    image = f" (image {lease.image})" if lease.image else ""
    again = f"it is retried in 24 hours, or after `trainhop accounts check {shlex.quote(account.name)}`"
    account.not_before = at + SMOKE_REST_S
    account.note = f"suspended after {len(failed)} failed sessions in a row{image}: {lease.detail}; {again}"
    tx.accounts.save(account)


def _smokes(tx: Transaction, lease: Lease) -> list[Lease]:
    """Failures of the smoke step on the account, including this one, since a session made a step there."""
    failed = list[Lease]()
    for one in tx.leases.on_account(lease.account_id, LOOKED_BACK):
        if one.step > one.first_step:
            break
        if one.cause == causes.SMOKE:
            failed.append(one)
    return failed
