"""Compares the training rows of a job with the items of the benchmarks and the tasks of an evaluation.

An adapter that was trained on an item has seen the question, so its score says nothing. The comparison is stored, as
the other data checks are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from orchestrator.domain.storage import Dataset
from orchestrator.ports.repository import Transaction
from orchestrator.services.check_calls import as_stored, within_limits
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied
from orchestrator.services.running_checks import RunningChecks
from worker.shared import limited_call
from worker.shared.benchmark_list import BENCHMARKS
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.findings import NotChecked, Report
from worker.shared.dataset_spec import DatasetSpec
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec

CHECK = "benchmark_leak"
Json = dict[str, Any]


def sources(asked: EvaluationSpec | None) -> tuple[tuple[str, DatasetSpec], ...]:
    """What an evaluation asks that must not be in the training rows, each with its words in a finding."""
    if asked is None:
        return ()
    tasks = (("the tasks", asked.tasks),) if asked.tasks is not None else ()
    return (*tasks, *((words_of(each.name), each.items) for each in asked.benchmarks))


def words_of(benchmark: str) -> str:
    """A benchmark in the words of a finding."""
    return f"the benchmark {benchmark}"


def with_leaks(
    ctx: Context, asked: EvaluationSpec | None, dataset: Dataset, report: Report, wait_s: float
) -> Report | None:
    """The report of a file with what it has in common with the evaluation. None if that takes longer than `wait_s`."""
    checks, compared = ctx.checks, sources(asked)
    if checks is None or not compared:
        return report
    key = _key(compared)
    with ctx.uow() as tx:
        stored = tx.datasets.get_report(dataset.sha256, dataset.row_format, key, VERSION)
    if stored is not None:
        return joined(report, Report.of(stored.report))
    name = f"{dataset.sha256} {dataset.row_format} {key}"
    with checks.patience(wait_s) as seconds:
        calls = {name: lambda: _compare(ctx, checks, dataset, compared)}
        found = checks.checking.gather(calls, seconds, lambda: None)
    return joined(report, found[name]) if name in found else None


def notes(ctx: Context, spec: JobSpec, asked: EvaluationSpec, wait_s: float) -> tuple[str, ...]:
    """What the author of an evaluation should know of the rows that the job was trained on. Both are pinned.

    A comparison that takes longer than `wait_s` goes on, and the card knows its result.
    """
    found: list[str] = []
    for entry in spec.datasets:
        with ctx.uow() as tx:
            dataset = tx.datasets.get(entry.sha256 or "")
        if dataset is not None:
            nothing = Report(version=VERSION, rows=dataset.rows, checked=0, findings=())
            report = with_leaks(ctx, asked, replace(dataset, row_format=entry.type), nothing, wait_s)
            found += [
                f"Of the training rows, {each.words}." for each in (report.findings if report is not None else ())
            ]
    return tuple(found)


def known_leaks(tx: Transaction, asked: EvaluationSpec | None, dataset: DatasetSpec) -> Report | None:
    """What is stored of such a comparison."""
    compared = sources(asked)
    if not compared:
        return None
    stored = tx.datasets.get_report(dataset.sha256 or "", dataset.type, _key(compared), VERSION)
    return Report.of(stored.report) if stored is not None else None


def joined(report: Report, leaks: Report | None) -> Report:
    """The report with the findings of a comparison, if there is one."""
    return report if leaks is None else report.joined(leaks.findings, (CHECK,), leaks.not_checked)


def _key(compared: Sequence[tuple[str, DatasetSpec]]) -> str:
    """A name for what the comparison depends on, besides the file."""
    return hashlib.sha256(json.dumps([CHECK, *((words, each.sha256) for words, each in compared)]).encode()).hexdigest()


def _compare(
    ctx: Context,
    checks: RunningChecks,
    dataset: Dataset,
    compared: Sequence[tuple[str, DatasetSpec]],
) -> Report:
    with checks.room:
        try:
            answer = _answer(ctx, checks, dataset, compared)
        except limited_call.LimitError as error:
            answer = {"fault": str(error)}
    missing = (NotChecked(check=CHECK, reason=answer["fault"]),) if "fault" in answer else ()
    plain: Json = {"version": VERSION, "rows": dataset.rows, "checked": dataset.rows, "not_checked": [], "figures": []}
    report = replace(Report.of({**plain, "findings": answer.get("findings", [])}), not_checked=missing)
    with ctx.uow() as tx:
        stored = as_stored(dataset.sha256, dataset.row_format, _key(compared), report.to_json(), ctx.clock.now())
        tx.datasets.add_report(stored)
    return report


def _answer(
    ctx: Context,
    checks: RunningChecks,
    dataset: Dataset,
    compared: Sequence[tuple[str, DatasetSpec]],
) -> Json:
    """The answer of the process. A file that was deleted is a fault."""
    items: list[Json] = []
    with ExitStack() as copies:
        for words, entry in compared:
            with ctx.uow() as tx:
                file = tx.datasets.get(entry.sha256 or "")
            if file is None:
                return {"fault": f"the file of {words} was deleted"}
            path = copies.enter_context(copied(ctx, file))
            items.append(
                {"source": words, "path": str(path), "container": file.file_format, "row_format": str(entry.type)}
            )
        return within_limits(ctx, checks, dataset, "leaked", items=items)


def leaked_benchmarks(leaks: Report | None) -> frozenset[str]:
    """The benchmarks that a comparison has found in the rows."""
    found = leaks.findings if leaks is not None else ()
    return frozenset(name for name in BENCHMARKS for each in found if each.words.endswith(words_of(name)))
