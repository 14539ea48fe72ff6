"""What the two files of a PEFT adapter say, read without torch, and whether a job can continue from it."""

from __future__ import annotations

import json
import math
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from worker.shared.checkpoint_header import MAX_HEADER_BYTES, MAX_TENSORS
from worker.shared.start_adapter import CONFIG, MAX_ADAPTER_BYTES, WEIGHTS

MAX_CONFIG_BYTES = 1 << 20
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:(A|B)\.weight|embedding_(A|B)|(magnitude)_vector(?:\.weight)?)")
_TOKENS = re.compile(r"base_model\.model\.(.+)\.token_adapter\.trainable_tokens_delta")
_NOT_FINITE = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""The integers of each type, and the exponent of NaN and infinite values."""
_PIECE = 1 << 24
_READ = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config r
    target_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora init_lora_weights layers_to_transform
    trainable_token_indices use_dora megatron_core qalora_group_size eva_config
"""
"""Keys of the config that are read, or that change nothing once an adapter has its values."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_SAVE = "save it again in a notebook with model.save_pretrained(folder, safe_serialization=True)"


class AdapterError(Exception):
    """A job cannot continue from this adapter. The message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """`settings` are keys of a job file. `modules` has the lengths (in, out) of each adapted module of the base model.

    The lengths of an embedding are not known. `base_model` is empty if the config names none.
    """

    base_model: str
    settings: dict[str, Any]
    modules: dict[str, tuple[int, int] | None]


def read_adapter(folder: Path) -> AdapterFiles:
    """Read both files and all values. Raises `AdapterError`."""
    config, shapes = _config(folder), _tensors(folder / WEIGHTS)
    settings = _settings(config)
    modules = _modules(shapes, settings)
    settings["lora_target_modules"] = tuple(sorted({name.rpartition(".")[2] for name in modules}))
    base = config.get("base_model_name_or_path")
    return AdapterFiles(base_model=base if isinstance(base, str) else "", settings=settings, modules=modules)


def pack(folder: Path, archive: Path) -> None:
    """The archive that machines get. The same two files give the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name in (CONFIG, WEIGHTS):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _config(folder: Path) -> dict[str, Any]:
    try:
        with (folder / CONFIG).open("rb") as stream:
            found: Any = json.loads(stream.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        raise AdapterError(f"it has no {CONFIG} that can be read. Name the folder of a PEFT adapter.") from None
    config: dict[str, Any] = found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType] - JSON
    if config.get("peft_type") != "LORA":
        kind = str(config.get("peft_type"))[:40]
        raise AdapterError(f"{CONFIG} is of the kind {kind}. A job can only continue from LoRA.")
    if extra := sorted(key for key, value in config.items() if value and key not in _READ.split()):
        raise AdapterError(
            f"it was made with {', '.join(extra)[:200]}, which a job cannot continue from. Use a plain LoRA."
        )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"it has trained biases (bias: {str(config['bias'])[:40]}). Train an adapter without them.")
    begun = str(config.get("init_lora_weights", "")).lower()
    if begun.startswith(_CHANGED_BASE):
        raise AdapterError(
            f"its initialisation {begun[:40]} has changed the base model's weights. Save it as a plain LoRA "
            "(PEFT's path_initial_model_for_weight_conversion), or merge it and train on the result."
        )
    return config


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    layers, tokens = config.get("layers_to_transform"), config.get("trainable_token_indices")
    if isinstance(tokens, dict):
        if len(tokens) > 1:  # pyright: ignore[reportUnknownArgumentType] - JSON
            raise AdapterError("it has trained tokens of several modules. Use an adapter that has those of one.")
        tokens = next(iter(tokens.values()), None)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return {
        "lora_r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "lora_dropout": config.get("lora_dropout") or 0.0,
        "lora_layers_to_transform": [layers] if isinstance(layers, int) else layers or [],
        "peft_use_rslora": bool(config.get("use_rslora")),
        "peft_use_dora": bool(config.get("use_dora")),
        "peft_trainable_token_indices": tokens or [],
    }


def _tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, none of which has NaN or infinite values."""
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin").is_file()
        what = (
            "its weights are a pickle (adapter_model.bin), which is never read" if pickled else f"it has no {WEIGHTS}"
        )
        raise AdapterError(f"{what}; {_SAVE}.")
    if path.stat().st_size > MAX_ADAPTER_BYTES:
        raise AdapterError(f"its weights have more than {MAX_ADAPTER_BYTES >> 30} GiB. Use one of a smaller rank.")
    try:
        with safe_open(path, framework="numpy"):  # compares the header with the size of the file
            pass
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(size, MAX_HEADER_BYTES)))
    except (SafetensorError, OSError, ValueError, RecursionError):
        raise AdapterError(f"{WEIGHTS} is damaged or cut off. Copy the file again.") from None
    header.pop("__metadata__", None)
    if not 0 < len(header) <= MAX_TENSORS:
        raise AdapterError(f"{WEIGHTS} has {len(header)} tensors, and at most {MAX_TENSORS} are possible.")
    values = np.memmap(path, np.uint8, "r", 8 + size)
    for name, entry in header.items():
        _refuse_values(name, entry, values)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _refuse_values(name: str, entry: Mapping[str, Any], values: np.ndarray) -> None:
    if entry["dtype"] not in _NOT_FINITE:
        raise AdapterError(f"{name[:200]} is of the type {entry['dtype']}, not fp32, fp16 or bf16; {_SAVE}.")
    code, exponent = _NOT_FINITE[entry["dtype"]]
    begin, end = entry["data_offsets"]
    for at in range(begin, end, _PIECE):
        bits = np.frombuffer(values[at : min(at + _PIECE, end)], code)
        if bool(((bits & exponent) == exponent).any()):
            raise AdapterError(f"{name[:200]} has NaN or infinite values. Use an earlier state of this adapter.")


def _modules(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if settings["peft_trainable_token_indices"] and _TOKENS.fullmatch(name):
            continue
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise AdapterError(f"{WEIGHTS} has {name[:200]}, which LoRA does not have. Use a plain LoRA adapter.")
        module, *kinds = found.groups()
        embedding = "embedding " if kinds[1] else ""
        halves.setdefault(module, {})[embedding + next(kind for kind in kinds if kind)] = shape
    return {module: _lengths(module, half, settings) for module, half in halves.items()}


def _lengths(module: str, half: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """The module's lengths, if its tensors belong together."""
    rank, more = settings["lora_r"], ({"magnitude"} if settings["peft_use_dora"] else set[str]())
    if module.rpartition(".")[2] == "lm_head":
        raise AdapterError("it adapts the head (lm_head), which a job does not train. Use an adapter without it.")
    if set(half) == {"embedding A", "embedding B"} | more:
        a, b, kind = half["embedding A"], half["embedding B"], None
    elif set(half) == {"A", "B"} | more and len(half["A"]) == len(half["B"]) == 2:
        a, b, kind = half["A"], half["B"], (half["A"][1], half["B"][0])
    else:
        raise AdapterError(f"{module[:200]} does not have the tensors of LoRA in {WEIGHTS}. The file is incomplete.")
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank or math.prod((*a, *b)) == 0:
        raise AdapterError(f"{module[:200]} has A {list(a)} and B {list(b)}, and {CONFIG} says r: {rank}.")
    return kind
