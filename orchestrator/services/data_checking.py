"""Checks stored data files in a process with limits, and keeps what was found for all jobs with them.

Checks begin when a file is uploaded. A plan or a submit uses the stored report, or waits for it a bounded time. Files
of earlier versions are checked when they are first planned or submitted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError, UnavailableError
from orchestrator.domain.storage import Dataset
from orchestrator.ports.repository import Transaction
from orchestrator.services.benchmark_leaks import joined, known_leaks, with_leaks
from orchestrator.services.check_calls import as_stored, within_limits
from orchestrator.services.context import Context
from orchestrator.services.datasets import bring, dataset_by_id
from orchestrator.services.row_faults import token_facts
from orchestrator.services.running_checks import RunningChecks
from worker.shared import limited_call
from worker.shared.data_check_list import CHECKS
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.findings import NotChecked, Report
from worker.shared.data_checks.token_facts import TokenFacts, facts_of, special_findings, token_findings
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.job_spec import JobSpec
from worker.shared.long_texts import SPLIT

CLEAN_WAIT_S = 60.0
AGAIN_S = 15.0
NOT_YET = "the file is still being checked"
Json = dict[str, Any]


def begin(ctx: Context, dataset: Dataset) -> None:
    """Start to check a file, if its report is not known."""
    report_of(ctx, dataset, wait_s=0.0)


def report_of(ctx: Context, dataset: Dataset, *, wait_s: float) -> Report | None:
    """The report of a file in its row format, without what needs a tokenizer. None if it takes longer than `wait_s`."""
    if ctx.checks is None:
        return None
    with ctx.uow() as tx:
        stored = tx.datasets.get_report(dataset.sha256, dataset.row_format, "", VERSION)
    if stored is not None:
        return Report.of(stored.report)
    checks, name = ctx.checks, f"{dataset.sha256} {dataset.row_format}"
    with checks.patience(wait_s) as seconds:
        found = checks.checking.gather({name: lambda: _check(ctx, checks, dataset)}, seconds, lambda: None)
    return found.get(name)


def _check(ctx: Context, checks: RunningChecks, dataset: Dataset) -> Report:
    with checks.room:
        try:
            answer = within_limits(ctx, checks, dataset, "checked")
            fault = answer.get("fault", "")
        except limited_call.LimitError as error:
            answer, fault = {}, str(error)
    report = _unread(dataset, fault) if fault else Report.of(answer["report"])
    with ctx.uow() as tx:
        tx.datasets.add_report(as_stored(dataset.sha256, dataset.row_format, "", report.to_json(), ctx.clock.now()))
    return report


def _unread(dataset: Dataset, fault: str) -> Report:
    """A file that could not be checked stops no job, and its report says so."""
    missing = tuple(NotChecked(check=name, reason=fault) for name in CHECKS)
    return Report(version=VERSION, rows=dataset.rows, checked=0, findings=(), not_checked=missing)


def reports_for(ctx: Context, spec: JobSpec, *, wait_s: float) -> tuple[Report | None, ...]:
    """The report of each file of a pinned job, with what the model's tokenizer adds. None for one that takes longer."""
    return tuple(_report_for(ctx, spec, entry, wait_s) for entry in spec.datasets) if ctx.checks else ()


def _report_for(ctx: Context, spec: JobSpec, entry: DatasetSpec, wait_s: float) -> Report | None:
    key = (entry.sha256 or "", entry.type, tokenizer_key(spec))
    with ctx.uow() as tx:
        dataset = tx.datasets.get(key[0])
        counted = tx.datasets.get_report(*key, VERSION)
    if dataset is None:
        return None
    dataset = replace(dataset, row_format=entry.type)
    report = report_of(ctx, dataset, wait_s=wait_s)
    if report is not None and report.checked:
        report = with_leaks(ctx, spec.evaluate, dataset, report, wait_s)
    if report is None or not report.checked:
        return report
    facts = facts_of(counted.report) if counted is not None else _facts(ctx, spec, entry, key)
    return report if facts is None else with_tokens(report, uncut(facts, spec, entry))


def known_reports(tx: Transaction, spec: JobSpec) -> tuple[Report | None, ...]:
    """What is stored of each file of a pinned job, with what the model's tokenizer adds. None if it was not checked."""
    found: list[Report | None] = []
    for entry in spec.datasets:
        stored = tx.datasets.get_report(entry.sha256 or "", entry.type, "", VERSION)
        counted = tx.datasets.get_report(entry.sha256 or "", entry.type, tokenizer_key(spec), VERSION)
        report = Report.of(stored.report) if stored is not None else None
        if report is not None and report.checked and counted is not None:
            report = with_tokens(report, uncut(facts_of(counted.report), spec, entry))
        if report is not None and report.checked:
            report = joined(report, known_leaks(tx, spec.evaluate, entry))
        found.append(report if report is not None and report.checked else None)
    return tuple(found)


def _facts(ctx: Context, spec: JobSpec, entry: DatasetSpec, key: tuple[str, str, str]) -> TokenFacts | None:
    """What the tokenizer adds, from the look at the rows that every plan and submit makes. It is stored."""
    facts = token_facts(ctx, spec, entry)
    if facts is not None:
        with ctx.uow() as tx:
            tx.datasets.add_report(as_stored(*key, asdict(facts), ctx.clock.now()))
    return facts


def tokenizer_key(spec: JobSpec) -> str:
    """A name for what the findings of a tokenizer depend on."""
    depends_on: list[object] = [spec.base_model, spec.sequence_len, spec.train_on_inputs, spec.encoding]
    taught = [entry.taught.model_dump() for entry in spec.datasets]
    depends_on += [taught] if any(taught) else []
    depends_on += [spec.own_template] if spec.own_template is not None else []
    depends_on += [[spec.tokens, spec.added_tokens_overrides]] if spec.new_tokens else []
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def uncut(facts: TokenFacts, spec: JobSpec, entry: DatasetSpec) -> TokenFacts:
    """The facts for the job, which may split the texts that are longer than `sequence_len`."""
    is_split = entry.type is RowFormat.TEXT and spec.excess_length_strategy == SPLIT
    return replace(facts, cut=0, cut_lines=()) if is_split else facts


def with_tokens(report: Report, facts: TokenFacts) -> Report:
    """The report with the findings of a tokenizer."""
    more = [each.finding for each in (*token_findings(facts), *special_findings(facts))]
    return report.joined(more, ("end_of_turn", "cut_rows"))


def stored_report(
    ctx: Context, actor: Actor, sha256: str, row_format: RowFormat = RowFormat.AUTO, *, wait_s: float = 0.0
) -> Report:
    """The report of an upload of the actor's.

    Raises `NotFoundError`, or `UnavailableError` while the file is still being checked.
    """
    dataset = dataset_by_id(ctx, actor, sha256)
    if row_format is not RowFormat.AUTO:
        dataset = replace(dataset, row_format=str(row_format))
    report = report_of(ctx, dataset, wait_s=wait_s)
    if report is None:
        raise UnavailableError(f"{dataset.name}: {NOT_YET}. Ask again in a moment.", retry_after_s=AGAIN_S)
    return report


def clean_copy(ctx: Context, actor: Actor, sha256: str) -> Dataset:
    """Make a new dataset of an upload of the actor's without the rows that the checks have found.

    Its `parent` is the original. Raises `NotFoundError`, `InvalidError` if nothing is found or nothing is left, and
    `UnavailableError` if it takes too long.
    """
    dataset = dataset_by_id(ctx, actor, sha256)
    if ctx.checks is None:
        raise UnavailableError("This server makes no data checks.")
    checks, name = ctx.checks, f"{actor.member_id} {sha256}"
    with checks.patience(CLEAN_WAIT_S) as seconds:
        copies = checks.copying.gather({name: lambda: _clean(ctx, checks, actor, dataset)}, seconds, lambda: None)
    if name not in copies:
        raise UnavailableError(
            f"The copy of {dataset.name} takes long. It will be among your data files.", retry_after_s=AGAIN_S
        )
    return dataset_by_id(ctx, actor, copies[name])


def _clean(ctx: Context, checks: RunningChecks, actor: Actor, dataset: Dataset) -> str:
    with TemporaryDirectory(prefix="trainhop-clean-") as folder, checks.room:
        out = Path(folder) / "rows.jsonl"
        try:
            answer = within_limits(ctx, checks, dataset, "cleaned", out=str(out))
        except limited_call.LimitError as error:
            raise InvalidError(f"{dataset.name} cannot be copied, because {error}. Split the file.") from None
        if "fault" in answer:
            raise InvalidError(f"{dataset.name}: {answer['fault']}")
        if not answer["left_out"]:
            raise InvalidError(f"The checks name no row of {dataset.name}, so a clean copy would be the same rows.")
        name = f"{Path(dataset.name).stem[:200]}-clean.jsonl"
        kept = bring(ctx, actor.member_id, out, name, RowFormat(dataset.row_format), parent=dataset.sha256)
    return kept.dataset.sha256
