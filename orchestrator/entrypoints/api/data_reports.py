"""API responses for the data checks."""

from __future__ import annotations

from orchestrator.entrypoints.api.responses import ResponseModel
from orchestrator.services.plans import DataFinding


class NotChecked(ResponseModel):
    """A check that could not be made, and why."""

    check: str
    reason: str


class DataReport(ResponseModel):
    """All findings in a file: stops first, then warnings, then notes. `checked` of its `rows` were read.

    `version` is that of the checks and their limits. `figures` are numbers without a limit.
    """

    version: int
    rows: int
    checked: int
    findings: list[DataFinding]
    not_checked: list[NotChecked]
    figures: list[tuple[str, float]]
