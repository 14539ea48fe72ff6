"""The verdict on the adapter of a finished job, from everything that the database has about it.

Only evaluations of the job's last checkpoint count, because the adapter file is made of it. The newest finished one is
used. Each blind comparison was another chance to win by luck, so the stated error rate grows with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.domain.audits import Audit, in_words, percent
from orchestrator.domain.comparisons import BlindComparison
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.jobs import Job
from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.declared_gain import FALSE_GAIN
from orchestrator.domain.trust.intervals import wilson
from orchestrator.domain.trust.sign_test import error_rates
from orchestrator.domain.trust.verdict import Evidence, Verdict, judge_adapter
from orchestrator.ports.repository import Transaction
from orchestrator.services import judge_reports
from orchestrator.services.comparisons import evidence_of
from orchestrator.services.declared_gains import gain_of, scores_of
from orchestrator.services.judge_reports import JudgeEvidence
from worker.shared.counted_words import many


@dataclass(frozen=True, kw_only=True)
class AuditOfData:
    """The audit of a data file in a few words, and its decision (None: no audit, or one without a limit)."""

    sha256: str
    words: str
    decision: Decision | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdict on a job's adapter with what it rests on.

    `evaluation` is the newest finished evaluation of the last checkpoint. `is_running` says whether another one is
    not done. `judges` is what judge models say of `evaluation`. `comparisons` counts the closed comparisons of all of
    them, and `error_rate` is the largest chance that one of these, or a judge model that could promote, calls an
    adapter better which is as good as its base, or that a declared gain is shown where there is none. `missing` names
    the gaps of the provenance, `checkpoints` the chain from the first checkpoint to the last, each as job, step and
    sha256.
    """

    verdict: Verdict
    evidence: Evidence
    evaluation: Evaluation | None
    is_running: bool
    judges: JudgeEvidence | None
    comparisons: int
    error_rate: float
    audits: tuple[AuditOfData, ...]
    missing: tuple[str, ...]
    checkpoints: tuple[tuple[str, int, str], ...]

    @property
    def is_audited(self) -> bool:
        """Whether somebody has labelled rows of every data file."""
        return bool(self.audits) and all(audit.words != in_words(None) for audit in self.audits)

    @property
    def votes_in_words(self) -> str:
        """What people said, with the number of prompts and the interval of the adapter's share. Empty without votes."""
        votes = self.evidence.votes
        if votes is None:
            return ""
        decisive = votes.wins + votes.losses
        words = f"{votes.quality}: {many(decisive + votes.ties, 'prompt')}, {votes.wins} won by the adapter, "
        words += f"{votes.losses} by its base, {votes.ties} tied"
        if not decisive:
            return words
        share = wilson(votes.wins, decisive)
        return f"{words}; share of the adapter {percent(share.value)} % ({percent(share.low)}–{percent(share.high)} %)"

    @property
    def advice(self) -> str:
        """What to do next, or an empty string."""
        if self.verdict.more:
            return f"About {self.verdict.more} more ratings would probably decide."
        if self.evaluation is None and self.is_running:
            return "Its evaluation is running."
        if self.evaluation is None:
            return "Evaluate it, and let people compare the answers."
        return "Let people compare the answers of its evaluation." if self.evidence.votes is None else ""


def judge(tx: Transaction, job: Job) -> Judged:
    """The verdict on a job's adapter as of now."""
    mine = [one for one in tx.evaluations.of_job(job.id) if one.checkpoint_sha256 == job.head]
    finished = [one for one in mine if one.finished_at is not None and one.report is not None]
    newest = finished[0] if finished else None
    audits = audits_of(tx, job)
    checkpoints, is_whole = _chain(tx, job)
    missing = tuple(_missing(tx, job, chain_is_whole=is_whole))
    closed = [found for evaluation in finished for found in _closed(tx, evaluation)]
    judged = [judge_reports.evidence_of(tx, evaluation.job_id) for evaluation in finished]
    judges = judged[0] if judged else None
    evidence = _evidence(tx, job, newest, audits, judges, is_whole=not missing)
    chances = len(closed) + sum(found.able for found in judged if found is not None)
    return Judged(
        verdict=judge_adapter(evidence),
        evidence=evidence,
        evaluation=newest,
        is_running=_is_running(tx, mine),
        judges=judges,
        comparisons=len(closed),
        error_rate=min(1.0, chances * _false_claims() + _false_gains(closed, finished)),
        audits=audits,
        missing=missing,
        checkpoints=checkpoints,
    )


def _is_running(tx: Transaction, evaluations: list[Evaluation]) -> bool:
    waiting = [one.job_id for one in evaluations if one.finished_at is None]
    return any(not job.state.is_final for job in tx.jobs.get_many(waiting).values())


def _closed(tx: Transaction, evaluation: Evaluation) -> list[BlindComparison]:
    return [found for found in tx.comparisons.of_evaluation(evaluation.job_id) if found.closed_at is not None]


def _false_gains(closed: list[BlindComparison], finished: list[Evaluation]) -> float:
    """Chance of a gain by luck. Each evaluation with tasks was one, because its owner declares after the scores."""
    if all(found.gain is None for found in closed):
        return 0.0
    return FALSE_GAIN * sum(scores_of(evaluation) is not None for evaluation in finished)


def _evidence(
    tx: Transaction,
    job: Job,
    evaluation: Evaluation | None,
    audits: tuple[AuditOfData, ...],
    judges: JudgeEvidence | None,
    *,
    is_whole: bool,
) -> Evidence:
    report: dict[str, Any] = (evaluation.report if evaluation is not None else None) or {}
    found = evidence_of(tx, evaluation.job_id) if evaluation is not None else None
    truncated = report.get("truncated", {})
    return Evidence(
        votes=found.votes if found is not None else None,
        judge=judges.advice if judges is not None else None,
        margin=found.margin if found is not None else None,
        gain=gain_of(tx, job, evaluation, found.gain) if evaluation is not None and found is not None else None,
        alpha=found.alpha if found is not None else None,
        vetoes=tuple(report.get("vetoes", ())),
        truncated_base=truncated.get("base", 0.0),
        truncated_adapter=truncated.get("adapter", 0.0),
        prompts=report.get("prompts", 0),
        audit=_decision(audits),
        provenance_is_whole=is_whole,
    )


def audits_of(tx: Transaction, job: Job) -> tuple[AuditOfData, ...]:
    """What is known of each data file of a job by audits."""
    hashes: list[str] = [entry.get("sha256") or "" for entry in job.spec.get("datasets", ())]
    wanted = list(dict.fromkeys(filter(None, hashes)))
    found = tx.audits.some(wanted)
    return tuple(_audit_of(sha256, found.get(sha256)) for sha256 in wanted)


def _audit_of(sha256: str, audit: Audit | None) -> AuditOfData:
    decision = audit.decision() if audit is not None else None
    return AuditOfData(sha256=sha256, words=in_words(audit), decision=decision)


def _decision(audits: tuple[AuditOfData, ...]) -> Decision | None:
    """One decision for all data files: the worst one, or None unless all have an audit with a limit."""
    found = [audit.decision for audit in audits]
    if Decision.FAIL in found:
        return Decision.FAIL
    if not found or None in found:
        return None
    return Decision.OPEN if Decision.OPEN in found else Decision.PASS


def _missing(tx: Transaction, job: Job, *, chain_is_whole: bool) -> Iterator[str]:
    if any(not entry.get("sha256") for entry in job.spec.get("datasets", ({},))):
        yield "the sha256 of a data file"
    head = tx.checkpoints.get(job.id, job.head) if job.head else None
    if head is None or not head.manifest.get("recipe", {}).get("base_sha256"):
        yield "the sha256 of the base model"
    if not chain_is_whole:
        yield "a checkpoint between the first one and the last"
    if not job.adapter_sha256:
        yield "the sha256 of the adapter"


def _chain(tx: Transaction, job: Job) -> tuple[tuple[tuple[str, int, str], ...], bool]:
    """All checkpoints from the first one to the job's last one, and whether none is missing.

    The first checkpoint of a clone is one of the original's, where the chain goes on.
    """
    found: list[tuple[str, int, str]] = []
    at, sha256, first = job, job.head, ""
    while at is not None and sha256:
        links = tx.checkpoints.links(at.id)
        while sha256 in links:
            step, parent = links.pop(sha256)
            if sha256 != first:
                found.append((at.id, step, sha256))
            first, sha256 = sha256, parent
        if sha256 is not None:
            break
        if not (at.cloned_from and at.first_step):
            return tuple(reversed(found)), True
        at, sha256 = tx.jobs.get_many([at.cloned_from]).get(at.cloned_from), first
    return tuple(reversed(found)), False


@lru_cache(maxsize=1)
def _false_claims() -> float:
    """Chance that the sign test calls an adapter better which is as good as its base."""
    return error_rates(0.5).better
