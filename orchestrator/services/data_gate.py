"""The data gate: everything that the data checks say of a pinned job, and the refusal of a job with a stop."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from orchestrator.domain.errors import FindingsError, UnavailableError
from orchestrator.services.context import Context
from orchestrator.services.data_checking import AGAIN_S, NOT_YET, reports_for
from orchestrator.services.held_out_checking import compared, held_out_of
from worker.shared.data_checks.findings import Finding, Report
from worker.shared.job_spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What is known of one file of a job, by the JSON pointer of its place in the job file.

    `report` is None while it is being checked. `dataset` is the place among the datasets, or None for rows that are
    held out. Nobody has to wait for a report that cannot stop the job (`may_stop`).
    """

    pointer: str
    name: str
    report: Report | None
    dataset: int | None = None
    may_stop: bool = True


def file_reports(ctx: Context, spec: JobSpec, *, wait_s: float, only_stops: bool = False) -> Iterator[FileReport]:
    """The reports of a pinned job: of its files, and of the rows that are held out.

    Each is waited for `wait_s`. With `only_stops`, one that cannot stop the job is begun and not waited for.
    """
    for place, report in enumerate(reports_for(ctx, spec, wait_s=wait_s)):
        yield FileReport(
            pointer=f"/datasets/{place}/path", name=spec.datasets[place].path, report=report, dataset=place
        )
    yield from held_out_reports(ctx, spec, wait_s=wait_s, only_stops=only_stops)


def held_out_reports(ctx: Context, spec: JobSpec, *, wait_s: float, only_stops: bool = False) -> Iterator[FileReport]:
    """The reports of the rows that a pinned job or an evaluation holds out of training. See `file_reports`."""
    for asked in held_out_of(spec) if ctx.checks is not None else ():
        may_stop = asked.held_out is not None
        report = compared(ctx, asked, wait_s=wait_s if may_stop or not only_stops else 0.0)
        yield FileReport(pointer=asked.pointer, name=f"the {asked.names}", report=report, may_stop=may_stop)


def refuse_findings(ctx: Context, spec: JobSpec) -> tuple[Finding, ...]:
    """Refuse a job with a stop in its data. Returns the stops that its `accept_findings` accepts.

    Raises `FindingsError` with what to do, or `UnavailableError` while a large file is still being checked.
    """
    reports = file_reports(ctx, spec, wait_s=_submit_wait_s(ctx), only_stops=True)
    return refuse_stops(reports, spec.accept_findings)


def refuse_leaks(ctx: Context, spec: JobSpec, accepted: Collection[str]) -> tuple[Finding, ...]:
    """Refuse an evaluation whose prompts or tasks are training rows. Returns and raises as `refuse_findings` does."""
    return refuse_stops(held_out_reports(ctx, spec, wait_s=_submit_wait_s(ctx)), accepted)


def _submit_wait_s(ctx: Context) -> float:
    return ctx.checks.submit_wait_s if ctx.checks else 0.0


def refuse_stops(reports: Iterable[FileReport], names: Collection[str]) -> tuple[Finding, ...]:
    """The stops in these reports that are accepted by the `names` of their checks. Raises as `refuse_findings` does."""
    accepted: list[Finding] = []
    faults: list[tuple[str, str]] = []
    of_training = False
    for each in reports:
        if each.report is None and each.may_stop:
            raise UnavailableError(f"{each.name}: {NOT_YET}. Submit the job again in a moment.", retry_after_s=AGAIN_S)
        for finding in each.report.findings if each.report else ():
            if finding.level == "stop" and finding.check in names:
                accepted.append(finding)
            elif finding.level == "stop":
                faults.append((each.pointer, refusal(finding, is_held_out=each.dataset is None)))
                of_training = of_training or each.dataset is not None
    if faults:
        checks = ", ".join(dict.fromkeys(words.partition(":")[0] for _, words in faults))
        what, how = (
            (f"The data has faults that a model would learn ({checks})", "Correct the data, use a clean copy")
            if of_training
            else (f"The model is trained on what it would be evaluated with ({checks})", "Remove these rows")
        )
        raise FindingsError(f"{what}. {how}, or accept them with accept_findings: [{checks}].", faults)
    return tuple(accepted)


def refusal(finding: Finding, *, is_held_out: bool = False) -> str:
    """A stop in one sentence: the check, the count, the first lines, and what to do."""
    lines = ", ".join(map(str, finding.lines[:10])) + (", …" if finding.count > 10 else "")
    where = f" (line{'s' if len(finding.lines) > 1 else ''} {lines})" if finding.lines else ""
    accept = f"To {'evaluate' if is_held_out else 'train'} anyway: accept_findings: [{finding.check}]."
    return f"{finding.check}: {finding.words}{where}. {finding.advice} {accept}"
