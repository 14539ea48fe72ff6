"""Small adapters in PEFT's format, written without PEFT."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers"


def tensors(rank: int = 4, hidden: int = 8, layers: int = 2) -> dict[str, np.ndarray]:
    """A and B of the queries and values of each layer."""
    found: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            name = f"{PREFIX}.{layer}.self_attn.{module}.lora"
            found[f"{name}_A.weight"] = np.full((rank, hidden), 0.5, np.float32)
            found[f"{name}_B.weight"] = np.full((hidden, rank), 0.25, np.float32)
    return found


def config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes beside them, as far as it matters."""
    usual = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "target_modules": ["v_proj", "q_proj"]}
    named = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "init_lora_weights": True}
    return named | usual | changes


def write(folder: Path, weights: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """The folder of such an adapter. `changes` are to its config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights if weights is not None else tensors(), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config(**changes)), encoding="utf-8")
    return folder


def packed(folder: Path) -> bytes:
    """The folder as a zip file."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return made.getvalue()
