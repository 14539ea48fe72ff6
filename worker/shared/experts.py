"""What is known of mixtures of experts from `config.json` alone: their sizes, and the names of their experts.

The worker's transformers keeps the experts of a layer in one tensor for each matrix. They are no linear layers, so
PEFT adapts them by the names of these parameters, and bitsandbytes leaves them in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BLOCKS = {
    "mlp": """
        afmoe axk1 axk2 cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1 ernie4_5_moe exaone_moe
        flex_olmo glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss hunyuan_v1_moe hy_v3 hy_v4 inkling_text kimi_linear laguna
        longcat_flash mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text mixtral olmoe phimoe qwen2_moe
        qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text solar_open zaya
    """,
    "block_sparse_moe": "granitemoe granitemoe_swa granitemoehybrid granitemoeshared",
    "feed_forward": "jamba lfm2_moe llama4 llama4_text",
}
FUSED: Mapping[str, tuple[str, str]] = {
    kind: (f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj")
    for block, kinds in _BLOCKS.items()
    for kind in kinds.split()
}
"""The parameters with the experts of a layer, by the type of the model. A test compares them with transformers."""
OPTIONAL = frozenset(
    {"aria_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "jetmoe", "nemotron_h"}
)
"""Types of models that may have experts, or have them by other names. They are known in the session alone."""
_MOVED = """
    afmoe cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe
    glm4_moe_lite glm_moe_dsa hunyuan_v1_moe longcat_flash mellum minimax minimax_m2 olmoe qwen3_moe qwen3_next
    solar_open
"""
MOVED_BY_PEFT = frozenset(_MOVED.split())
"""Types of models in which PEFT takes the names in `MOVED` for the experts, as they were called in older versions."""
MOVED = frozenset({"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """`count` experts of `width` in each of `layers` layers, `chosen` of them for a token.

    `shared` is the width of those that each token has.
    """

    count: int = 0
    width: int = 0
    layers: int = 0
    chosen: int = 0
    shared: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Experts:
        """The experts in a config, without any where it names none. Raises `TypeError` or `ValueError`."""
        count, layers = _first(config, _COUNTS), int(config["num_hidden_layers"])
        if config.get("model_type") not in FUSED or count < 2:
            return NO_EXPERTS
        width = int(config.get("moe_intermediate_size") or config["intermediate_size"])
        dense = int(config.get("first_k_dense_replace") or config.get("num_dense_layers") or 0)
        step, only = (
            int(config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step") or 1),
            config.get("mlp_only_layers") or (),
        )
        sparse = [n for n in range(min(layers, 10_000)) if n >= dense and (n + 1) % max(1, step) == 0 and n not in only]
        shared = int(config.get("shared_expert_intermediate_size") or 0) or width * _first(
            config, ("n_shared_experts",)
        )
        return cls(count=count, width=width, layers=len(sparse), chosen=_first(config, _CHOSEN) or 1, shared=shared)

    def stacks(self, hidden: int) -> tuple[int, int]:
        """Parameters of a layer's two tensors."""
        return self.count * 2 * self.width * hidden, self.count * self.width * hidden

    def adapted(self, names: Sequence[str], hidden: int, rank: int) -> tuple[int, int]:
        """Parameters of the adapters of these experts, and of the largest tensor among them in one layer."""
        adapters, largest = 0, 0
        up, down = self.stacks(hidden)
        for ending, sizes, size in (
            ("gate_up_proj", hidden + 2 * self.width, up),
            ("down_proj", hidden + self.width, down),
        ):
            if any(name.rpartition(".")[2] == ending for name in names):
                adapters += self.layers * self.count * rank * sizes
                largest = max(largest, size)
        return adapters, largest


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> int:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)


NO_EXPERTS = Experts()


def has(kind: str, name: str, layers: int) -> bool:
    """Whether a model of this type with as many layers has experts or a router of this name, as PEFT compares it."""
    block = FUSED[kind][0].partition(".")[0]
    there = (*FUSED[kind], f"{block}.gate.weight", f"{block}.router.weight")
    full = (f".model.layers.{layer}.{each}" for layer in range(min(layers, 10_000)) for each in there)
    return any(place.endswith(f".{name}") for place in full) or name.startswith("model.language_model.")


def words(kind: str) -> str:
    """How a job file names the experts of such a model."""
    return f"lora_target_parameters: [{', '.join(FUSED[kind])}]"
