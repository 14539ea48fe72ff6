"""The training methods: what a job file may say of each, and which rows it takes.

One entry of `METHODS` and its keys in `MethodKeys` describe a method to the server, the job file, its docs and the
translation of axolotl's files. `worker.training.methods` has a module of the same name that computes its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from worker.shared.dataset_spec import RowFormat
from worker.shared.rows import Row
from worker.shared.wire import Written

SFT = "sft"
"""The method of a job file without `rl`."""
_SAMPLES = (
    "samples answers while it trains, and sampled tokens differ between machines, so an interrupted job could not end "
    "in the same bytes; train on answers that were rated before, with rl: dpo"
)
_OTHERS = {"grpo": _SAMPLES, "gdpo": _SAMPLES, "rloo": _SAMPLES, "ebft": _SAMPLES, "ppo": _SAMPLES}
"""Why a method of others is not one of ours. `rl: ipo` and further ones have no reason but their absence."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What the server needs to know of a method.

    `formats` are those of its rows, `settings` its keys with their defaults. A row has `answers` answers that are
    scored apart. `least_rows` is the smallest global batch. `has_reference` says that the loss compares the model with
    the one that it was when the job began.
    """

    title: str
    formats: tuple[RowFormat, ...]
    settings: Mapping[str, float] = field(default_factory=dict[str, float])
    answers: int = 1
    least_rows: int = 1
    has_reference: bool = False


_PAIRS = (RowFormat.PREFERENCE,)
METHODS: dict[str, Method] = {
    SFT: Method(
        title="Supervised fine-tuning",
        formats=(
            RowFormat.MESSAGES,
            RowFormat.PROMPT_COMPLETION,
            RowFormat.TEXT,
            RowFormat.ALPACA,
            RowFormat.SHAREGPT,
        ),
    ),
    "dpo": Method(
        title="Direct preference optimisation",
        formats=_PAIRS,
        settings={"rl_beta": 0.1},
        answers=2,
        has_reference=True,
    ),
    "orpo": Method(title="Odds ratio preference optimisation", formats=_PAIRS, settings={"orpo_alpha": 0.1}, answers=2),
    "simpo": Method(
        title="Simple preference optimisation",
        formats=_PAIRS,
        settings={"rl_beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        answers=2,
    ),
    "kto": Method(
        title="Kahneman-Tversky optimisation",
        formats=(RowFormat.UNPAIRED_PREFERENCE,),
        settings={"rl_beta": 0.1, "kto_desirable_weight": 1.0, "kto_undesirable_weight": 1.0},
        least_rows=2,
        has_reference=True,
    ),
}


def _known(value: Any) -> Any:
    """Refuse a method that is not there, in one sentence."""
    if value is None or (isinstance(value, str) and value in METHODS and value != SFT):
        return value
    raise ValueError(unknown(value))


def unknown(value: object) -> str:
    """Why there is no method of this name."""
    name = str(value)[:40]
    there = (
        f"there are {', '.join(name for name in METHODS if name != SFT)}, and supervised fine-tuning without the key"
    )
    return f"{name} {_OTHERS[name]}" if name in _OTHERS else f"'{name}' is not supported; {there}"


def _setting(meaning: str, **limits: Any) -> Any:
    return Field(default=None, exclude_if=lambda value: value is None, description=meaning, **limits)


class MethodKeys(Written):
    """The keys of a job file that choose a method and set it. A value of None is the method's default.

    Job files that do not use a key do not name it, because older workers refuse it.
    """

    rl: Annotated[Literal["dpo", "orpo", "simpo", "kto"] | None, BeforeValidator(_known)] = _setting(
        "The training method. Without it, the job is supervised fine-tuning."
    )
    rl_beta: float | None = _setting(
        "How strongly the loss weighs a difference of log-probabilities. With a small value, the model moves further "
        "away from the reference model.",
        gt=0,
        le=1_000,
    )
    orpo_alpha: float | None = _setting("Share of the odds ratio in the loss.", gt=0, le=1_000)
    simpo_gamma: float | None = _setting(
        "The margin by which the chosen answer's reward should be larger.", ge=0, le=1_000
    )
    kto_desirable_weight: float | None = _setting("Weight of good answers in the loss.", gt=0, le=1_000)
    kto_undesirable_weight: float | None = _setting("Weight of bad answers in the loss.", gt=0, le=1_000)
    cpo_alpha: float | None = _setting("Share of the chosen answers' cross-entropy in the loss.", ge=0, le=1_000)

    @property
    def method(self) -> Method:
        """The job's method."""
        return METHODS[self.rl or SFT]

    @property
    def method_settings(self) -> dict[str, float]:
        """The keys that the method reads, with their values."""
        given = {name: getattr(self, name) for name in self.method.settings}
        return {name: float(self.method.settings[name] if value is None else value) for name, value in given.items()}


def fault(keys: MethodKeys, global_batch_size: int, *, train_on_inputs: bool) -> str:
    """Why a job file with these keys cannot be, in one sentence, or ""."""
    for name in MethodKeys.model_fields:
        if name == "rl" or getattr(keys, name) is None or name in keys.method.settings:
            continue
        readers = " or ".join(f"rl: {other}" for other, each in METHODS.items() if name in each.settings)
        return (
            f"{name} has no effect {f'with rl: {keys.rl}' if keys.rl else 'without rl'}; it is a setting of {readers}"
        )
    if keys.rl and train_on_inputs:
        return f"rl: {keys.rl} compares answers, so prompts cannot be trained on; remove train_on_inputs"
    if global_batch_size < keys.method.least_rows:
        return f"rl: {keys.rl} needs a global_batch_size of at least {keys.method.least_rows}"
    return ""


def refused_rows(keys: MethodKeys, found: RowFormat) -> str:
    """Why a dataset of this format is not for the job's method, in one sentence, or ""."""
    if found in (*keys.method.formats, RowFormat.AUTO):
        return ""
    takers = [name for name, method in METHODS.items() if found in method.formats]
    for_others = "; leave rl out" if takers == [SFT] else f"; set rl to {' or '.join(takers)}"
    mine, wanted = f"rl: {keys.rl}" if keys.rl else "a job without rl", ", ".join(keys.method.formats)
    return (
        f"{mine} trains on rows of the format {wanted}, and these are {found}{for_others if takers else ''}, or set "
        "the dataset's type if its rows have the columns of another format, too"
    )


def format_of(row: Row) -> RowFormat:
    """A format that a row may have come from, as far as methods tell formats apart."""
    if row.rejected is not None:
        return RowFormat.PREFERENCE
    if row.desirable is not None:
        return RowFormat.UNPAIRED_PREFERENCE
    return RowFormat.MESSAGES if row.messages else RowFormat.PROMPT_COMPLETION if row.prompt else RowFormat.TEXT
