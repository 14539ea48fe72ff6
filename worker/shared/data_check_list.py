"""The data checks with their limits, apart from their code, because a job file names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["stop", "warn", "list"]
LEVELS: tuple[Level, ...] = ("stop", "warn", "list")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. A share above `stop` refuses a job, one above `warn` is a warning, any other finding is listed."""

    name: str
    advice: str
    stop: float | None = None
    warn: float | None = None
    removes: bool = True
    """Whether a clean copy leaves out the rows that it names."""

    def level(self, share: float) -> Level:
        """The level of a finding in this share of the rows."""
        if self.stop is not None and share > self.stop:
            return "stop"
        return "warn" if self.warn is not None and share > self.warn else "list"


_CHECKS = (
    Check(
        name="exact_duplicates",
        stop=0.20,
        warn=0.01,
        advice="Keep one of each.",
    ),
    Check(
        name="near_copies",
        warn=0.05,
        advice="Keep one of each, unless the small differences are what the model has to learn.",
    ),
    Check(
        name="leak",
        stop=0.0,
        warn=0.0,
        advice="Remove them from the validation rows, or the validation loss measures memory.",
    ),
    Check(
        name="split",
        warn=0.0,
        removes=False,
        advice="Keep all copies of a row on one side, or let Trainhop split the rows.",
    ),
    Check(
        name="benchmark_leak",
        stop=0.0,
        advice="Remove the rows, or do not judge the adapter by this benchmark.",
    ),
    Check(
        name="contradictions",
        warn=0.005,
        advice="Decide which answer is right.",
    ),
    Check(
        name="repeated_turns",
        warn=0.01,
        advice="Remove the repetition, or the model will repeat itself.",
    ),
    Check(
        name="template_tokens",
        stop=0.0,
        warn=0.0,
        advice="Remove them. The chat template writes them itself.",
    ),
    Check(
        name="end_of_turn",
        stop=0.01,
        advice="Set a larger sequence_len, or choose a model with a chat template that ends its turns.",
    ),
    Check(
        name="cut_rows",
        stop=0.20,
        warn=0.02,
        removes=False,
        advice="Set a larger sequence_len, or shorten the rows.",
    ),
    Check(
        name="truncated_answers",
        warn=0.05,
        advice="Complete the answers, or remove the rows.",
    ),
    Check(
        name="refusals",
        warn=0.01,
        advice="Remove the rows, unless the model has to answer like this.",
    ),
    Check(
        name="length_outliers",
        removes=False,
        advice="Look at them.",
    ),
    Check(
        name="language",
        warn=0.05,
        removes=False,
        advice="Remove the rows, unless the model has to know these languages.",
    ),
    Check(
        name="secrets",
        stop=0.0,
        warn=0.0,
        advice="Revoke the keys and remove the rows: a model repeats what it was trained on.",
    ),
    Check(
        name="personal_data",
        warn=0.0,
        advice="Remove or replace the data: a model repeats what it was trained on.",
    ),
    Check(
        name="shift",
        warn=0.0,
        removes=False,
        advice="Draw the validation rows at random from the same source.",
    ),
    Check(
        name="diversity",
        warn=0.20,
        removes=False,
        advice="Vary the answers, or the model begins every answer like this.",
    ),
)
CHECKS = {check.name: check for check in _CHECKS}
