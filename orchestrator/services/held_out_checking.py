"""Compares held-out rows of a job with its training rows, in a process with limits, and keeps what was found.

A job has them where it asks for an evaluation with prompts or tasks of its own, and where its split holds rows out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.storage import Dataset
from orchestrator.ports.repository import Transaction
from orchestrator.services.check_calls import as_read, as_stored, in_process
from orchestrator.services.context import Context
from orchestrator.services.data_checking import AGAIN_S, NOT_YET
from orchestrator.services.datasets import copied, dataset_by_id
from orchestrator.services.running_checks import RunningChecks
from worker.shared import limited_call
from worker.shared.data_checks import VERSION
from worker.shared.data_checks.findings import NotChecked, Report
from worker.shared.data_checks.leaks import PROMPTS, TASKS, VALIDATION
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.job_spec import JobSpec

CHECKED = ("leak", "split", "shift")
"""The checks of rows that are held out."""
Json = dict[str, Any]


class _BusyError(Exception):
    """Too many comparisons have begun."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows that a job holds out, and the files that it is trained on, each with its sha256 and row format.

    `pointer` is the place in the job file, and `names` says what the rows are. Without `held_out` it is the split of
    the job: `eval_rows` of its rows by `seed`.
    """

    pointer: str
    names: str
    trained: tuple[tuple[str, str], ...]
    held_out: tuple[str, str] | None = None
    eval_rows: int = 0
    seed: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """Hash and row format of the file that the report belongs to, and a hash of all that it depends on."""
        depends_on = [self.names, self.trained, self.eval_rows, self.seed]
        return (*(self.held_out or self.trained[0]), hashlib.sha256(json.dumps(depends_on).encode()).hexdigest())


def held_out_of(spec: JobSpec) -> tuple[HeldOut, ...]:
    """What has to be compared for a pinned job, or for an evaluation."""
    trained = tuple(_name(entry) for entry in spec.datasets)
    asked, pointer = (spec.evaluation, "") if spec.evaluation is not None else (spec.evaluate, "/evaluate")
    found: list[HeldOut] = []
    if spec.evaluation is None and spec.val_split is not None and spec.eval_rows:
        split = HeldOut(
            pointer="/val_set_size", names=VALIDATION, trained=trained, eval_rows=spec.eval_rows, seed=spec.seed
        )
        found.append(split)
    if asked is not None:
        files = ((PROMPTS, asked.prompts), (TASKS, asked.tasks))
        found += [
            HeldOut(pointer=f"{pointer}/{names}/path", names=names, trained=trained, held_out=_name(file))
            for names, file in files
            if file is not None
        ]
    return tuple(found)


def held_out_of_card(spec: JobSpec, settings: Json) -> tuple[HeldOut, ...]:
    """The split of a pinned job, and the files of the settings that its adapter was evaluated with."""
    trained = tuple(_name(entry) for entry in spec.datasets)
    split = tuple(each for each in held_out_of(spec) if each.held_out is None)
    files: list[tuple[str, Json]] = [
        (names, settings[names]) for names in (PROMPTS, TASKS) if isinstance(settings.get(names), dict)
    ]
    return split + tuple(
        HeldOut(pointer="", names=names, trained=trained, held_out=(file["sha256"], file["type"]))
        for names, file in files
    )


def _name(entry: DatasetSpec) -> tuple[str, str]:
    return entry.sha256 or "", str(entry.type)


def compared(ctx: Context, asked: HeldOut, *, wait_s: float) -> Report | None:
    """The report of a comparison. None if it takes longer than `wait_s`, or if its files are gone."""
    if ctx.checks is None:
        return None
    with ctx.uow() as tx:
        stored = known(tx, asked)
        files = [_dataset(tx, *name) for name in (*asked.trained, *((asked.held_out,) if asked.held_out else ()))]
    if stored is not None or not all(files):
        return stored
    checks, name = ctx.checks, " ".join(asked.key)
    with checks.patience(wait_s) as seconds:
        try:
            found = checks.checking.gather({name: lambda: _compare(ctx, checks, asked, files)}, seconds, lambda: None)
        except _BusyError:
            return None
    return found.get(name)


def known(tx: Transaction, asked: HeldOut) -> Report | None:
    """What is stored of a comparison."""
    stored = tx.datasets.get_report(*asked.key, VERSION)
    return Report.of(stored.report) if stored is not None else None


def _dataset(tx: Transaction, sha256: str, row_format: str) -> Dataset | None:
    dataset = tx.datasets.get(sha256)
    return None if dataset is None else replace(dataset, row_format=row_format)


def _compare(ctx: Context, checks: RunningChecks, asked: HeldOut, files: Sequence[Dataset | None]) -> Report:
    if not checks.comparing.acquire(blocking=False):
        raise _BusyError
    try:
        with checks.room:
            report = _found(ctx, checks, asked, [each for each in files if each is not None])
    finally:
        checks.comparing.release()
    with ctx.uow() as tx:
        tx.datasets.add_report(as_stored(*asked.key, report.to_json(), ctx.clock.now()))
    return report


def _found(ctx: Context, checks: RunningChecks, asked: HeldOut, files: Sequence[Dataset]) -> Report:
    size = sum(each.size for each in files)
    with ExitStack() as copies:
        read = [as_read(copies.enter_context(copied(ctx, each)), each) for each in files]
        trained = read[: len(asked.trained)]
        answer: Json
        try:
            if asked.held_out is None:
                request: Json = {"trained": trained, "eval_rows": asked.eval_rows, "seed": asked.seed}
                answer = in_process(checks, "split_checked", request, size)
            else:
                answer = in_process(checks, "compared", read[-1] | {"trained": trained, "names": asked.names}, size)
        except limited_call.LimitError as error:
            answer = {"fault": str(error)}
    fault = answer.get("fault")
    if fault is not None:
        missing = tuple(NotChecked(check=name, reason=fault) for name in CHECKED)
        return Report(version=VERSION, rows=0, checked=0, findings=(), not_checked=missing)
    return Report.of(answer["report"])


def with_validation(
    ctx: Context,
    actor: Actor,
    report: Report,
    trained: str,
    row_format: RowFormat,
    validation: str,
    *,
    wait_s: float,
) -> Report:
    """The report of the upload `trained` with what it has in common with the actor's upload `validation`.

    Raises `NotFoundError`, or `UnavailableError` while they are compared.
    """
    file, rows = dataset_by_id(ctx, actor, trained), dataset_by_id(ctx, actor, validation)
    read_as = file.row_format if row_format is RowFormat.AUTO else str(row_format)
    asked = HeldOut(
        pointer="",
        names=VALIDATION,
        trained=((file.sha256, read_as),),
        held_out=(rows.sha256, rows.row_format),
    )
    found = compared(ctx, asked, wait_s=wait_s)
    if found is None:
        raise UnavailableError(f"{rows.name}: {NOT_YET}. Ask again in a moment.", retry_after_s=AGAIN_S)
    return report.joined(found.findings, CHECKED, found.not_checked)
