"""The settings of a model in a GGUF file: sizes, norms, attention, and the rotary embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from worker.export.architectures import Architecture
from worker.export.errors import ExportError

_LOCAL_ROPE = 10_000.0
"""The base of Gemma 3's local layers, which llama.cpp does not read from the file."""
_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, for which llama.cpp scales attention by the model's width."""
_GEMMA3_PATTERN = 6
"""Every sixth layer of Gemma 3 is global. llama.cpp does not read that from the file."""


def add_settings(writer: Any, architecture: Architecture, config: Any) -> None:
    """Add the model's settings. Raises `ExportError` for one that llama.cpp cannot compute."""
    _check(architecture, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture.gguf == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture.gguf in ("gemma2", "gemma3", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    _add_rope(writer, config)


def head_size(config: Any) -> int:
    """Values of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope(config: Any) -> Mapping[str, Any]:
    """The parameters of the rotary embedding, of the global layers if there are two kinds."""
    found = config.rope_parameters
    return found.get("full_attention", found)


def rotated(config: Any) -> int:
    """Values of one attention head that are rotated."""
    return int(head_size(config) * rope(config).get("partial_rotary_factor", 1.0))


def rope_factors(config: Any) -> dict[str, torch.Tensor]:
    """Factors of the frequencies by the name of their tensor, for the kinds of scaling that need them."""
    parameters = rope(config)
    match parameters.get("rope_type", "default"):
        case "llama3":
            return {"rope_freqs.weight": _llama3_factors(parameters, rotated(config))}
        case "longrope":
            names = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
            return {target: torch.tensor(parameters[key], dtype=torch.float32) for key, target in names.items()}
        case _:
            return {}


def _add_rope(writer: Any, config: Any) -> None:
    parameters = rope(config)
    writer.add_rope_dimension_count(rotated(config))
    writer.add_rope_freq_base(parameters["rope_theta"])
    kind = parameters.get("rope_type", "default")
    if kind == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    elif kind == "longrope":
        original = _original_positions(config, parameters)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(_longrope_scale(config, parameters, original))


def _original_positions(config: Any, parameters: Mapping[str, Any]) -> int:
    found = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    if not found:
        raise ExportError("the model's longrope has no original_max_position_embeddings; it cannot be exported")
    return int(found)


def _longrope_scale(config: Any, parameters: Mapping[str, Any], original: int) -> float:
    """What transformers multiplies rotated values by."""
    if (given := parameters.get("attention_factor")) is not None:
        return float(given)
    growth = parameters.get("factor") or config.max_position_embeddings / original
    return 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))


def _llama3_factors(parameters: Mapping[str, Any], size: int) -> torch.Tensor:
    """Divisors of the frequencies: 1 for high ones, `factor` for low ones, smooth between."""
    factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(parameters["original_max_position_embeddings"])
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    found: list[float] = []
    for exponent in exponents.tolist():
        wavelength = 2 * math.pi * parameters["rope_theta"] ** exponent
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found, dtype=torch.float32)


def _check(architecture: Architecture, config: Any) -> None:
    kind = rope(config).get("rope_type", "default")
    allowed = {"default", "linear", "llama3"} | ({"longrope"} if architecture.gguf == "phi3" else set())
    if kind not in allowed:
        raise ExportError(f"GGUF export does not know the rotary embedding of the type {kind}; merge the model instead")
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != architecture.activation:
        raise ExportError(
            f"llama.cpp computes {architecture.name} with {architecture.activation}, and this model has {activation}"
        )
    if architecture.gguf.startswith("qwen") and getattr(config, "use_sliding_window", False):
        raise ExportError("llama.cpp does not compute the sliding window of this Qwen model; merge the model instead")
    if architecture.norm_offset:
        _check_gemma(architecture, config)


def _check_gemma(architecture: Architecture, config: Any) -> None:
    is_largest = config.num_hidden_layers == _LARGEST[architecture.gguf]
    scale = config.hidden_size // config.num_attention_heads if is_largest else head_size(config)
    if config.query_pre_attn_scalar != scale:
        raise ExportError(
            f"llama.cpp scales attention of this model by {scale}, and its query_pre_attn_scalar is "
            f"{config.query_pre_attn_scalar}"
        )
    kinds = list(config.layer_types)
    period = 2 if architecture.gguf == "gemma2" else _GEMMA3_PATTERN
    expected = ["full_attention" if (number + 1) % period == 0 else "sliding_attention" for number in range(len(kinds))]
    if kinds != expected:
        raise ExportError(f"llama.cpp expects each {period}th layer of {architecture.name} to be global, not {kinds}")
    local = config.rope_parameters.get("sliding_attention", {}).get("rope_theta", _LOCAL_ROPE)
    if local != _LOCAL_ROPE:
        raise ExportError(f"llama.cpp rotates local layers with the base {_LOCAL_ROPE:.0f}, and this model has {local}")
