"""API responses for checks of machines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.entrypoints.api.requests import RequestModel
from orchestrator.entrypoints.api.responses import ResponseModel, Time
from orchestrator.services.cell_checks import MAX_LINE


class CheckCreate(RequestModel):
    """A check to start. With `gpu` it uses a few minutes of the account's GPU quota."""

    gpu: bool = False


class CheckOutputCreate(RequestModel):
    """The output of a check's cell: one signed line."""

    line: Annotated[str, Field(max_length=MAX_LINE)]


class Cell(ResponseModel):
    """Python code for a notebook cell. `reaches` is true if the cell can send its result to this server."""

    cell: str
    reaches: bool


class CheckProbe(ResponseModel):
    """One probe: `words` is the result as text, `remedy` is what to do, `data` has the measured values."""

    name: str
    title: str
    status: Literal["ok", "failed", "not asked"]
    seconds: float
    words: str
    remedy: str
    data: dict[str, Any]


class Check(ResponseModel):
    """The result of a check. It has no names, tokens or addresses, so it can be posted."""

    machine: Literal["cpu", "gpu"]
    at: Time
    image: str
    versions: dict[str, str]
    probes: list[CheckProbe]


class RunningCheck(ResponseModel):
    """A running check with its completed probes."""

    at: Time
    gpu: bool
    seen: list[CheckProbe]


class Diagnosis(ResponseModel):
    """An account's checks. `problem` is the last check's error. `changed` is true if the image has changed since."""

    account: str
    running: RunningCheck | None
    checks: list[Check]
    problem: str
    changed: str
    summary: str = Field(description="A one-line summary.")
