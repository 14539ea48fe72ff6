"""What the API answers about checks of machines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.entrypoints.api.requests import RequestModel
from orchestrator.entrypoints.api.responses import ResponseModel, Time
from orchestrator.services.colab_checks import MAX_LINE


class CheckAsked(RequestModel):
    """A check to make. With `gpu` it takes some minutes of the account's GPU quota."""

    gpu: bool = False


class AnswerAsked(RequestModel):
    """What a cell has printed: one signed line."""

    line: Annotated[str, Field(max_length=MAX_LINE)]


class Cell(ResponseModel):
    """Python for a notebook's cell; `reaches` says whether its answer comes to this server by itself."""

    cell: str
    reaches: bool


class Probe(ResponseModel):
    """One probe: `words` say what was found, `remedy` what to do about it, `data` what was measured."""

    name: str
    title: str
    status: Literal["ok", "failed", "not asked"]
    seconds: float
    words: str
    remedy: str
    data: dict[str, Any]


class Check(ResponseModel):
    """What a check found. It holds no names, tokens or addresses, and may be posted."""

    machine: Literal["cpu", "gpu"]
    at: Time
    image: str
    versions: dict[str, str]
    probes: list[Probe]


class RunningCheck(ResponseModel):
    """A check under way, and the probes that have ended."""

    at: Time
    gpu: bool
    seen: list[Probe]


class Diagnosis(ResponseModel):
    """An account's checks; `problem` says why the last one could not be made, `changed` that the image is another one now."""

    account: str
    running: RunningCheck | None
    checks: list[Check]
    problem: str
    changed: str
    summary: str = Field(description="All of it in one line.")
