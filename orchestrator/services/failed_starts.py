"""Sessions that ended before their first step for a known cause: what people are told, how long a job waits, when it stops."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.domain.model import Job, Lease
from orchestrator.domain.scheduling import retry_at
from orchestrator.ports.repository import Transaction
from worker.shared import causes

TRIES = 3
"""Sessions without a step by one cause after which a job stops."""
WHOLE_SESSIONS = 2
"""The same where each of them used up its whole time."""
WAITS_S = (60.0, 300.0, 1_800.0)
"""Before the next try, by how many sessions in a row made no step, whatever the cause."""
NEARLY_WHOLE = 0.9
"""The part of its time after which a session counts as a whole one."""
SMOKES = 2
"""Failures of the smoke step on one account and image after which the account rests."""
SMOKES_ON_ANY = 4
"""The same where every one of them saw another image."""
SMOKE_REST_S = 86_400.0
"""Images change daily."""
LOOKED_BACK = 50
"""Sessions of an account among which its failures of the smoke step are counted."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What happened, and what a person can do about it; both without a full stop."""

    what: str
    remedy: str


_WORDS = {
    causes.LAUNCH: Words(
        what="the provider refused to start the session",
        remedy="put right what it says, then retry the job",
    ),
    causes.INPUT: Words(
        what="a file that was staged for the machine did not arrive there",
        remedy="retry the job later, or run it on another account",
    ),
    causes.INSTALL: Words(
        what="the packages could not be installed",
        remedy="update trainhop if packages conflict, else see that the machine has internet access, then retry the job",
    ),
    causes.SMOKE: Words(
        what="the packages do not train on the image of this machine",
        remedy="update trainhop, or see what fails with `trainhop doctor`",
    ),
    causes.GPU: Words(
        what="the machine has no GPU that can be used",
        remedy="choose a machine with a GPU, or leave the backend to `backend: auto`",
    ),
    causes.MODEL: Words(
        what="the base model could not be downloaded",
        remedy="see that the machine reaches the hub and, for a gated model, that your hub token may read it, then retry the job",
    ),
    causes.DATA: Words(
        what="the training data or the checkpoint could not be downloaded",
        remedy="see that the machine can reach where they are stored, then retry the job",
    ),
    causes.IMPORTS: Words(
        what="importing the training libraries took too long",
        remedy="update trainhop, or run the job on another account",
    ),
    causes.GPUS: Words(
        what="the processes of several GPUs did not find each other",
        remedy="run the job on an account whose machines have one GPU",
    ),
    causes.DISK: Words(
        what="the disk of this machine is full",
        remedy="free some space there, or choose a smaller base model",
    ),
    causes.START: Words(
        what="the script that starts the worker ended with an error of its own",
        remedy="read the output of the session and update trainhop, then retry the job",
    ),
    causes.NO_STEP: Words(
        what="the whole session passed without a step",
        remedy="read the output of the session, and allow longer sessions or choose a smaller base model",
    ),
}


def _words(cause: str) -> Words:
    """A word that only a newer worker knows is shown as it is."""
    unknown = Words(what=f"the session ended before its first step ({cause})", remedy="read the output of the session")
    return _WORDS.get(cause, unknown)


def sentence(cause: str, detail: str) -> str:
    """What happened, what the session itself said, and what can be done, as one sentence."""
    words = _words(cause)
    said = detail.strip().rstrip(".")
    told = said if words.what in said else " ".join(filter(None, [words.what, said and f"({said})"]))
    return told if words.remedy in said else f"{told}: {words.remedy}"


def _cause_of(lease: Lease, said: str) -> str:
    """What kept an ended session from its first step; empty if it made one, or if nobody knows.

    How long it worked is told by its own clock: a server that was away hears of a short session long after it.
    """
    if lease.step > lease.first_step:
        return ""
    if said or lease.end_reason in {EndReason.PAUSED, EndReason.CANCELLED}:
        return said
    worked_s = sum(lease.ledger.values())
    return causes.NO_STEP if worked_s >= NEARLY_WHOLE * lease.budget_s else ""


def close(
    tx: Transaction, lease: Lease, state: LeaseState, end: EndReason, *, at: float, detail: str, cause: str = ""
) -> None:
    """End a session; if it made no step for a known cause, its detail says that in words. See `leases.hand_back`."""
    lease.end(state, end, at=at, detail=detail)
    lease.cause = _cause_of(lease, cause)
    if lease.cause:
        at_work = lease.cause == causes.NO_STEP and lease.started_at is not None
        said = [f"last phase: {lease.phase}" if at_work else "", detail]
        lease.detail = sentence(lease.cause, "; ".join(filter(None, said)))
    tx.save_lease(lease)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an ended session means for its job: `stop` says in words why no other is worth a try."""

    retry_at: float
    counts: bool
    stop: str = ""


def weigh(tx: Transaction, lease: Lease, job: Job, at: float, *, counts: bool) -> Verdict:
    """Judge a session that has just ended and is written; one that counts brings its job nearer to its end.

    What is wrong with a machine's image is no fault of the job: the account rests, and the job goes on elsewhere at once.
    """
    end = lease.end_reason
    assert end is not None
    if lease.cause == causes.SMOKE:
        _rest(tx, lease, at)
        return Verdict(retry_at=at, counts=False)
    if not lease.cause:
        in_a_row = job.failures_in_a_row if end is EndReason.FAILED else job.losses_in_a_row
        return Verdict(retry_at=retry_at(end, in_a_row, at) if counts else at, counts=counts)
    before = _since_the_last_step(tx.leases_of(job.id), lease, job.losses_in_a_row + job.failures_in_a_row)
    alike = 1 + sum(one.cause == lease.cause for one in before)
    return Verdict(retry_at=_again_at(lease, before, at), counts=counts, stop=_enough(lease, alike))


def _again_at(lease: Lease, before: list[Lease], at: float) -> float:
    """When the next try may begin; after a session that used its whole time there is nothing to wait for."""
    if lease.cause == causes.NO_STEP:
        return at
    return at + WAITS_S[min(sum(bool(one.cause) for one in before), len(WAITS_S) - 1)]


def _since_the_last_step(leases: list[Lease], ended: Lease, counted: int) -> list[Lease]:
    """The job's sessions before this one back to the last that made a step, newest first.

    No more than the job has `counted`: what was before it was resumed or retried by a person is forgiven.
    """
    earlier = sorted((one for one in leases if one.fence < ended.fence), key=lambda one: -one.fence)
    found = list[Lease]()
    for one in [one for one in earlier if _counted(one)][:counted]:
        if one.step > one.first_step:
            break
        found.append(one)
    return found


def _counted(lease: Lease) -> bool:
    """Whether the session brought its job nearer to its end."""
    ends = {EndReason.LOST, EndReason.UNFIT, EndReason.FAILED}
    return lease.cause != causes.SMOKE and (bool(lease.cause) or lease.end_reason in ends)


def _enough(lease: Lease, times: int) -> str:
    """Why the job stops, or nothing."""
    if lease.cause == causes.NO_STEP:
        all_of_them = f"{times} whole sessions passed without a step"
        return lease.detail.replace(_words(lease.cause).what, all_of_them) if times >= WHOLE_SESSIONS else ""
    return f"stopped after {times} sessions without a step, because {lease.detail}" if times >= TRIES else ""


def _rest(tx: Transaction, lease: Lease, at: float) -> None:
    """Leave an account alone on whose image the smoke step fails, until somebody looks at it or the image has changed."""
    account = tx.account(lease.account_id)
    failed = _smokes(tx, lease)
    alike = sum(one.image == lease.image for one in failed)
    if account is None or (alike < SMOKES and len(failed) < SMOKES_ON_ANY):
        return
    image = f" (image {lease.image})" if lease.image else ""
    again = f"it is tried again in 24 hours, or after `trainhop accounts check {shlex.quote(account.name)}`"
    account.not_before = at + SMOKE_REST_S
    account.note = f"rests after {len(failed)} sessions in a row{image}: {lease.detail}; {again}"
    tx.save_account(account)


def _smokes(tx: Transaction, lease: Lease) -> list[Lease]:
    """The failures of the smoke step on the account, this one among them, since a session made a step there."""
    failed = list[Lease]()
    for one in tx.leases_on(lease.account_id, LOOKED_BACK):
        if one.step > one.first_step:
            break
        if one.cause == causes.SMOKE:
            failed.append(one)
    return failed
