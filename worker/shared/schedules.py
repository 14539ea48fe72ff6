"""Learning rate schedules, and the settings that some of them have, under the names of transformers.

Each is a function of the step alone, so a resumed session goes on along the same curve.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from worker.shared.counted_words import many
from worker.shared.wire import Written

Schedule = Literal[
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_min_lr",
    "inverse_sqrt",
    "polynomial",
    "warmup_stable_decay",
]
Share = Annotated[float, Field(ge=0, lt=1)]
LR_END = 1e-7
"""The default of transformers."""
Steps = Annotated[int, Field(ge=1, lt=2**31)]

_NEEDED = {"cosine_with_min_lr": "min_lr_rate", "warmup_stable_decay": "num_decay_steps"}
_ALLOWED = {
    "cosine_with_min_lr": {"min_lr_rate"},
    "inverse_sqrt": {"timescale"},
    "polynomial": {"power", "lr_end"},
    "warmup_stable_decay": {"num_decay_steps", "decay_type", "min_lr_ratio"},
}


class ScheduleSettings(Written):
    """`lr_scheduler_kwargs`. A setting that is not given has the default of transformers.

    `min_lr_rate` and `min_lr_ratio` are shares of the learning rate, `lr_end` is a learning rate, `timescale` and
    `num_decay_steps` are steps.
    """

    min_lr_rate: Share | None = None
    min_lr_ratio: Share | None = None
    num_decay_steps: Steps | None = None
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = None
    timescale: Steps | None = None
    power: Annotated[float, Field(gt=0, le=100)] | None = None
    lr_end: Annotated[float, Field(ge=0, le=10)] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are given."""
        return self.model_dump(exclude_none=True)


def fault(schedule: str, settings: ScheduleSettings, learning_rate: float) -> str:
    """Why these settings do not belong to the schedule, or ""."""
    allowed = _ALLOWED.get(schedule, set())
    if unknown := sorted(settings.given.keys() - allowed):
        has = f"it has {', '.join(sorted(allowed))}" if allowed else "it has none"
        return f"lr_scheduler {schedule} has no setting {', '.join(unknown)}; {has}"
    needed = _NEEDED.get(schedule)
    if needed and needed not in settings.given:
        return f"lr_scheduler {schedule} needs {needed} in lr_scheduler_kwargs"
    last = LR_END if settings.lr_end is None else settings.lr_end
    if schedule == "polynomial" and last >= learning_rate:
        return f"lr_end {last:g} must be below learning_rate {learning_rate:g}"
    return ""


def too_long(settings: ScheduleSettings, warm_up: int, steps: int) -> str:
    """Why warm-up and decay do not fit into the steps, or ""."""
    decay = settings.num_decay_steps or 0
    if warm_up + decay <= steps:
        return ""
    whole = many(steps, "step")
    return f"the job has {whole}, and its warm-up of {warm_up} and its decay of {many(decay, 'step')} do not fit"
