"""Limits of a base model that its files tell before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

_TABLES = frozenset({"biogpt", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt", "xglm"})
"""Kinds of models with a table of positions. All others compute positions, also beyond the trained ones."""
_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


class Positions(TypedDict):
    """Fields of `ports.catalog.BaseModel`."""

    positions: int | None
    has_position_table: bool


def positions(config: Mapping[str, Any]) -> Positions:
    """How long a row may be, as the config says."""
    config = config.get("text_config") or config
    found = [config[key] for key in _KEYS if isinstance(config.get(key), int) and 0 < config[key] < 2**31]
    return {
        "positions": found[0] if found else None,
        "has_position_table": bool(found) and config.get("model_type") in _TABLES,
    }


def linear_modules(weights: Mapping[str, Sequence[int]]) -> frozenset[str]:
    """Names of the modules with a matrix, from the shapes of a model's weights."""
    return frozenset(
        name.removesuffix(".weight") for name, shape in weights.items() if name.endswith(".weight") and len(shape) == 2
    )
