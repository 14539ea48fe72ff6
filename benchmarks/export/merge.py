"""Merging: the bits of PEFT's `merge_and_unload`, and the memory that a model of 7B needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.export.models import FAMILIES, make_adapter, make_model
from benchmarks.report import Figure
from worker.export.run import Request, export
from worker.export.tensor_files import TensorFolder

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "rsLoRA and patterns": {
        "use_rslora": True,
        "rank_pattern": {"o_proj": 8},
        "alpha_pattern": {"down_proj": 3, r"layers.0.self_attn.\w+_proj": 5},
    },
}
MAX_MEMORY = 1.5e9
LAYERS = (4, 12)
"""With fewer, rests of freed memory look like growth."""
WHOLE = 32
FORMS = ("merged", "gguf")
SHAPE_7B: Mapping[str, Any] = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_MEASURED = """
import resource, sys
from worker.export.__main__ import main
code = main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""


def bits(folder: Path) -> Iterator[Figure]:
    """Each architecture and kind of scaling, against PEFT in the same type and in fp32 rounded at the end."""
    for family in FAMILIES:
        for number, (name, options) in enumerate(OPTIONS.items()):
            place = folder / family / str(number)
            base = make_model(place / "base", family)
            adapter = make_adapter(place / "adapter", base, **options)
            same = total = 0
            for kind in ("fp16", "bf16"):
                out = place / kind
                export(Request(adapter=adapter, out=out, form="merged", kind=kind, base=str(base)), lambda _: None)
                found, expected = TensorFolder(out), _peft(base, adapter, kind)
                total += len(expected)
                same += sum(
                    name in found.names() and bool((found.rows(name, 0, len(value)) == value).all())
                    for name, value in expected.items()
                )
            yield Figure(
                name=f"{FAMILIES[family]}, {name}: tensors with PEFT's bits",
                value=same,
                bar=f"{total}",
                ok=same == total,
            )


def _peft(base: Path, adapter: Path, kind: str) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    dtype = torch.float16 if kind == "fp16" else torch.bfloat16
    tied = merged.config.tie_word_embeddings
    state = merged.state_dict().items()
    return {name: value.to(dtype) for name, value in state if not (tied and name == "lm_head.weight")}


def memory(folder: Path) -> Iterator[Figure]:
    """Peak memory of the process with 4 and with 12 layers of a 7B model and its whole embedding and output layer."""
    peaks: dict[tuple[str, int], int] = {}
    for layers in LAYERS:
        yield from _memory_of(folder, layers, peaks)
    for form in FORMS:
        few, more = LAYERS
        growth = (peaks[form, more] - peaks[form, few]) / (more - few)
        whole = peaks[form, more] + (WHOLE - more) * max(0.0, growth)
        yield Figure(
            name=f"{form}: what {WHOLE} layers would need at this growth",
            value=f"{whole / 1e9:.2f} GB ({growth / 1e6:+.0f} MB a layer, of which the adapter is 5)",
            bar="<= 1.5 GB",
            ok=whole <= MAX_MEMORY,
        )


def memory_7b(folder: Path) -> Iterator[Figure]:
    """Peak memory of the process with all 32 layers. It needs 30 GB of disk."""
    yield from _memory_of(folder, WHOLE, {})


def _memory_of(folder: Path, layers: int, peaks: dict[tuple[str, int], int]) -> Iterator[Figure]:
    """Exports this many layers in each form. The peaks, in bytes, are added to `peaks`."""
    base, adapter = _shape(folder / f"base-{layers}", layers), folder / f"adapter-{layers}"
    _updates(adapter, layers)
    for form in FORMS:
        started, out = time.monotonic(), folder / f"{form}-{layers}"
        peaks[form, layers] = _peak(base, adapter, out, form)
        took = f"{time.monotonic() - started:.0f} s"
        shutil.rmtree(out)
        yield Figure(
            name=f"{form}, {layers} layers of 7B: peak memory with its checks, in {took}",
            value=f"{peaks[form, layers] / 1e9:.2f} GB",
            bar="<= 1.5 GB",
            ok=peaks[form, layers] <= MAX_MEMORY,
        )


def _peak(base: Path, adapter: Path, out: Path, form: str) -> int:
    request = {"adapter": str(adapter), "out": str(out), "form": form, "kind": "fp16", "base": str(base)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURED],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return int(done.stderr.splitlines()[-1])


def _shape(folder: Path, layers: int) -> Path:
    """Repeated random weights of 7B in bf16 with `layers` layers, and the tokenizer of the tiny models."""
    import torch

    from benchmarks.export.models import sentencepiece_like
    from worker.export.tensor_files import BLOCK, row_blocks, write_shards

    h, f, v = SHAPE_7B["hidden_size"], SHAPE_7B["intermediate_size"], SHAPE_7B["vocab_size"]
    kv = SHAPE_7B["num_key_value_heads"] * SHAPE_7B["head_dim"]
    shapes = {"model.embed_tokens.weight": (v, h), "lm_head.weight": (v, h), "model.norm.weight": (h,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": (h,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (h, h) for name in "qo"}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (kv, h) for name in "kv"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (f, h) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (h, f)}

    torch.manual_seed(0)
    noise = torch.randn(BLOCK) * 0.02

    class Random:
        def names(self) -> list[str]:
            return list(shapes)

        def shape(self, name: str) -> tuple[int, ...]:
            return shapes[name]

        def blocks(self, name: str) -> Iterator[Any]:
            for start, stop in row_blocks(shapes[name]):
                size = (stop - start, *shapes[name][1:])
                yield noise[: prod(size)].reshape(size) if len(size) > 1 else torch.ones(size)

    folder.mkdir(parents=True)
    write_shards(folder, Random(), torch.bfloat16, encode=lambda _, block: block.bfloat16(), shard_bytes=10**9)
    (folder / "config.json").write_text(json.dumps({**SHAPE_7B, "num_hidden_layers": layers, "dtype": "bfloat16"}))
    sentencepiece_like().save_pretrained(folder)
    return folder


def _updates(folder: Path, layers: int) -> None:
    """An adapter of rank 16 on all linear layers."""
    import torch
    from safetensors.torch import save_file

    h, f = SHAPE_7B["hidden_size"], SHAPE_7B["intermediate_size"]
    kv = SHAPE_7B["num_key_value_heads"] * SHAPE_7B["head_dim"]
    sizes = {"self_attn.q": (h, h), "self_attn.k": (h, kv), "self_attn.v": (h, kv), "self_attn.o": (h, h)}
    sizes |= {"mlp.gate": (h, f), "mlp.up": (h, f), "mlp.down": (f, h)}
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for name, (width, height) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}_proj.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(16, width) * 0.01
            tensors[f"{prefix}B.weight"] = torch.randn(height, 16) * 0.01
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": "7B"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
