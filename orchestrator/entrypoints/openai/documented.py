"""The errors of OpenAI's API in the OpenAPI document. Status 422 is sent and documented as 400."""

from __future__ import annotations

from typing import Any

from orchestrator.entrypoints.http.dependencies import PROBLEMS
from orchestrator.entrypoints.openai.answers import OpenAIError

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIError, "description": found["description"].replace("`errors`", "`param`")}
    for status, found in PROBLEMS.items()
}
