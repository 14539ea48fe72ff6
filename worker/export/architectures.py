"""The architectures that can be exported, and how each differs from the others in a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.export.errors import ExportError
from worker.export.json_files import read_object
from worker.shared.export_spec import EXPORTABLE, not_exportable


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`gguf` is the name in a GGUF file.

    `is_permuted`: rows of q and k are in another order there. `norm_offset` is added to the weights of norms there.
    `overflows`: activations exceed the range of fp16.
    """

    name: str
    gguf: str
    is_permuted: bool = False
    norm_offset: float = 0.0
    overflows: bool = False
    activation: str = "silu"


_GEMMA: dict[str, Any] = {"norm_offset": 1.0, "overflows": True, "activation": "gelu_pytorch_tanh"}
_DIFFERENCES: dict[str, dict[str, Any]] = {
    "llama": {"gguf": "llama", "is_permuted": True},
    "mistral": {"gguf": "llama", "is_permuted": True},
    "qwen2": {"gguf": "qwen2"},
    "qwen3": {"gguf": "qwen3"},
    "gemma2": {"gguf": "gemma2", **_GEMMA},
    "gemma3_text": {"gguf": "gemma3", **_GEMMA},
    "phi3": {"gguf": "phi3"},
}
SUPPORTED = {kind: Architecture(name=name, **_DIFFERENCES[kind]) for kind, name in EXPORTABLE.items()}
"""By `model_type` of config.json."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model. Raises `ExportError`."""
    return read_object(folder / "config.json", "name the folder of a model with --base")


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a model. Raises `ExportError` with its name if it cannot be exported."""
    kind = config.get("model_type")
    found = SUPPORTED.get(kind) if isinstance(kind, str) else None
    classes = config.get("architectures") or []
    if found is None or any(not str(name).endswith("ForCausalLM") for name in classes):
        name = f"{kind} ({', '.join(map(str, classes))})" if classes else str(kind)
        raise ExportError(not_exportable(name))
    if "quantization_config" in config:
        raise ExportError("the base model is stored quantised; name the folder of the original with --base")
    return found


def is_quantised_in_training(name: str) -> bool:
    """Whether a job with `adapter: qlora` holds this tensor in NF4: the linear layers of the blocks."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")
