"""`lora_target_modules` as a pattern: a regular expression for the full names of modules, as PEFT takes it.

Python's patterns can take time that doubles with each character, so they are tried in a process with a limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from worker.shared import limited_call
from worker.shared.wire import excerpt

ALL_LINEAR = "all-linear"
MAX_PATTERN = 500
CPU_S = 1
"""Seconds for all modules of a model. A sound pattern takes a thousandth of it."""
SHOWN = 4
_ENDS = frozenset({"embed_tokens", "wte", "wpe", "embed_in", "embed_out", "word_embeddings", "lm_head", "output"})
"""Usual last names of embeddings and output layers."""
TYPICAL = tuple(
    f"model.layers.{layer}.{module}"
    for layer in (0, 31)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "post_attention_layernorm")
)
"""Names to try a pattern on while those of the model are not known."""


class PatternError(ValueError):
    """A pattern that cannot be used. The message is one sentence."""


def valid(pattern: object) -> str:
    """The pattern itself. Raises `ValueError` unless it is a regular expression of at most `MAX_PATTERN` characters."""
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN:
        raise ValueError(f"must be '{ALL_LINEAR}' or a regular expression of at most {MAX_PATTERN} characters")
    try:
        re.compile(f"(?:{pattern})")
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"must be a regular expression: {excerpt(str(error), 100)}") from None
    return pattern


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match as a whole. Raises `PatternError` if that takes too long."""
    try:
        return limited_call.call(f"{__name__}:matched", {"pattern": pattern, "names": list(names)}, cpu_s=CPU_S)
    except limited_call.LimitError as error:
        raise PatternError(
            f"the pattern {excerpt(pattern, 60)!r} takes too long ({error}); write it without a repetition inside a "
            "repetition"
        ) from None


def matched(request: dict[str, Any]) -> list[str]:
    """For a process with limits."""
    pattern = re.compile(request["pattern"])
    return [name for name in request["names"] if pattern.fullmatch(name)]


def check(pattern: str, names: Sequence[str], examples: Sequence[str], others: Iterable[str] | None = None) -> None:
    """Raise `PatternError` if a pattern matches none of the `names`, or one of the `others`.

    `others` cannot have an adapter. By default they are those with usual names of embeddings, norms and output layers.
    `examples` are names of modules that can.
    """
    found = matching(pattern, names)
    there = f"modules have names like {', '.join(sorted(examples)[:SHOWN])}"
    if not found:
        raise PatternError(f"the pattern {excerpt(pattern, 60)!r} matches none of the model's modules; {there}")
    known = _usual_others(found) if others is None else set(others)
    if wrong := sorted(known.intersection(found)):
        raise PatternError(
            f"the pattern {excerpt(pattern, 60)!r} also matches {wrong[0]}, which is not a linear layer inside the "
            f"model; {there}"
        )


def _usual_others(names: Iterable[str]) -> set[str]:
    return {name for name in names if (last := name.rpartition(".")[2]) in _ENDS or last.endswith("norm")}
