"""What is known of a base model from its `config.json` alone, before anything is downloaded. Needs no torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec

_NAMES = """
    afmoe apertus arcee aria_text axk1 axk2 bamba bart bert bert-generation big_bird bigbird_pegasus biogpt bitnet
    blenderbot blenderbot-small bloom blt camembert codegen cohere cohere2 cohere2_moe cohere_compass_text cpmant ctrl
    cwm data2vec-text dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 electra emu3 ernie
    ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo fuyu gemma gemma2 gemma3
    gemma3_text gemma3n gemma3n_text gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant
    gemma4_unified_text git glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo
    gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid
    granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling_text jais2 jamba
    jetmoe kimi_linear laguna lfm2 lfm2_moe llama llama4 llama4_text longcat_flash mamba mamba2 marian mbart
    megatron-bert mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
    mixtral mllama modernbert-decoder moshi mpt musicgen musicgen_melody mvp nanochat nemotron nemotron_h olmo olmo2
    olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3 phi4_multimodal phimoe plbart prophetnet qwen2
    qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text
    recurrent_gemma reformer rembert roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss smollm3 solar_open
    stablelm starcoder2 trocr vaultgemma whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod youtu zamba zamba2
    zaya
"""
KNOWN = frozenset(_NAMES.split())
"""Types of causal models that the worker's transformers loads with its own code. A test compares them with it."""
_RENAMING = """
    afmoe axk1 axk2 cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1 emu3 ernie4_5_moe exaone_moe
    flex_olmo fuyu gemma3 gemma3n_text gemma4_unified glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 granitemoe
    granitemoehybrid granitemoeshared hrm_text hunyuan_v1_moe hy_v3 hy_v4 jamba kimi_linear laguna lfm2_moe
    longcat_flash mellum mimo_v2_flash minimax minimax_m2 mixtral mllama nemotron_h olmo_hybrid olmoe phimoe
    qwen2_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text solar_open
"""
RENAMED = frozenset(_RENAMING.split())
"""Types of models whose weights the worker's transformers renames or joins while it loads them, so that the files do
not tell the names of the modules. A test compares them with it.
"""
_REFUSED_BY_PEFT = {
    "mamba": "in_proj, x_proj",
    "falcon_mamba": "in_proj, x_proj",
    "mamba2": "in_proj",
    "falcon_h1": "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    "nemotron_h": "q_proj, k_proj, v_proj, o_proj, up_proj, down_proj",
}
"""Types of models whose state space layers PEFT does not adapt at `out_proj` and `conv1d`, and targets that work."""
_REFUSED_TARGETS = frozenset({"out_proj", "conv1d"})
_READS_ITS_WEIGHTS = frozenset({"falcon_mamba", "jamba", "mamba"})
"""Types of models that read the weights of a linear layer instead of calling it, which 4-bit weights do not allow."""


_CAP = "attn_logit_softcapping"
_CAPPED_BY_DEFAULT = frozenset({"gemma2", "vaultgemma"})
"""Types of models whose scores are capped although their config need not say so."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why an adapter cannot be trained: the key of the job file, and one sentence with the remedy."""

    key: str
    words: str


def model_type(config: Mapping[str, Any]) -> str:
    """The type of a model, or ""."""
    found = config.get("model_type")
    return found if isinstance(found, str) else ""


def needs_own_code(config: Mapping[str, Any]) -> bool:
    """Whether a model only runs with code of its own. Many carry such code although transformers knows them."""
    return "auto_map" in config and model_type(config) not in KNOWN


def adapter_fault(spec: JobSpec, kind: str) -> Fault | None:
    """Why this type of model cannot be trained with the job's adapter. None if nothing speaks against it."""
    targets = () if spec.module_pattern else spec.lora_target_modules
    asks = targets == "all-linear" or any(target.rpartition(".")[2] in _REFUSED_TARGETS for target in targets)
    if asks and kind in _REFUSED_BY_PEFT:
        name = "all-linear" if targets == "all-linear" else "out_proj or conv1d"
        return Fault(
            key="lora_target_modules",
            words=f"the layers of a {kind} model cannot take an adapter on {name}; "
            f"set lora_target_modules to [{_REFUSED_BY_PEFT[kind]}]",
        )
    if spec.adapter == "qlora" and kind in _READS_ITS_WEIGHTS:
        return Fault(key="adapter", words=f"a {kind} model does not run with 4-bit weights; set adapter to lora")
    return None


def attention_of(config: Mapping[str, Any]) -> str | None:
    """The implementation of attention that computes what the model defines. None for the library's choice.

    PyTorch's own attention leaves out the cap of scores that some models were trained with.
    """
    inner = config.get("text_config")
    for part in (config, inner) if isinstance(inner, Mapping) else (config,):
        if part.get(_CAP, model_type(part) in _CAPPED_BY_DEFAULT):
            return "eager"
    return None


def weights_of(directory: Path) -> list[Path]:
    """The weight files that transformers loads from a folder, present or not. Empty if it names none.

    The folder may also contain the same weights in one file or in the authors' own format.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [directory / Path(name).name for name in sorted(shards)]
    return []


def present_weights(directory: Path) -> list[Path]:
    """The weight files of a folder, without copies in the authors' own format where transformers does not load them."""
    return [path for path in weights_of(directory) if path.is_file()] or sorted(directory.glob("*.safetensors"))
