"""Evaluations: jobs that answer prompts with the base model and with the adapter. An evaluation has its job's id."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_PROMPTS = 500
MAX_PROMPT_BYTES = 65_536
"""Maximum size of a prompt's messages as JSON."""
MAX_ANSWER_BYTES = 65_536


class Arm(StrEnum):
    """One of the two models that an evaluation compares."""

    BASE = "base"
    ADAPTER = "adapter"


@dataclass(kw_only=True)
class Evaluation:
    """The evaluation of a checkpoint of `trained_job`.

    `checkpoint_sha256` is the evaluated checkpoint, and `adapter_sha256` the trained job's adapter file (None if that
    job is not finished). `settings` is the `evaluation` of the job file. The last three are None until the job is done:
    the sha256 of the answers, the report, and when it was finished.
    """

    job_id: str
    trained_job: str
    owner: str
    checkpoint_sha256: str
    adapter_sha256: str | None
    settings: dict[str, Any]
    created_at: float
    answers_sha256: str | None = None
    report: dict[str, Any] | None = None
    finished_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Both answers to the prompt `number` (from 0) of an evaluation. `prompt` is a list of `{role, content}`.

    An answer is truncated if it was cut at the token limit.
    """

    job_id: str
    number: int
    prompt: list[dict[str, str]]
    base: str
    adapter: str
    base_truncated: bool
    adapter_truncated: bool
    base_tokens: int
    adapter_tokens: int
