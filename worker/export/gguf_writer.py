"""Writes GGUF files: their head with the package `gguf`, their tensors one block of rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worker.export import gguf_types
from worker.export.adapter import Adapter
from worker.export.architectures import Architecture
from worker.export.errors import ExportError
from worker.export.gguf_settings import add_settings, rope_factors
from worker.export.tensor_files import Weights, whole
from worker.export.vocabulary import Vocabulary
from worker.shared.export_spec import no_form
from worker.shared.files import flush_to_disk

ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes."""
LORA_A, LORA_B = ".lora_a", ".lora_b"


class _Tensor(NamedTuple):
    """A tensor of the file. `name` is for errors, `blocks` makes its rows in fp32."""

    name: str
    target: str
    shape: tuple[int, ...]
    kind: int
    blocks: Callable[[], Iterator[torch.Tensor]]


def write_model(
    path: Path,
    weights: Weights,
    architecture: Architecture,
    config: Any,
    vocabulary: Vocabulary,
    *,
    kind: int,
    name: str,
) -> None:
    """Write a whole model. `kind` is one of F16, BF16 and Q8_0, `config` that of transformers.

    Raises `ExportError` for what the architecture has no place for. Raises `OSError` on a full disk.
    """
    writer = _writer(path, architecture, "model", name)
    writer.add_file_type(gguf_types.FILE_TYPES[kind])
    writer.add_quantization_version(2)
    add_settings(writer, architecture, config)
    vocabulary.add_to(writer, rows=config.vocab_size)
    names = _names(architecture, config)
    tensors = [_own(target, values) for target, values in rope_factors(config).items()]
    for tensor in weights.names():
        shape = weights.shape(tensor)
        blocks = partial(_blocks, tensor, weights, architecture, config)
        tensors.append(_Tensor(tensor, _gguf_name(names, tensor), shape, gguf_types.stored_type(kind, shape), blocks))
    _write(path, writer, tensors)


def write_adapter(path: Path, adapter: Adapter, architecture: Architecture, config: Any, *, name: str) -> None:
    """Write the adapter as a LoRA for `llama.cpp --lora`, in F32.

    llama.cpp has one alpha for the whole file and scales by alpha / rank, so what differs between modules goes into B.
    Raises `ExportError` for modules that the architecture has no place for. Raises `OSError` on a full disk.
    """
    if any(pair.magnitude is not None for pair in adapter.pairs.values()):
        raise ExportError(no_form({"peft_use_dora": True}, "gguf-adapter"))
    if adapter.rows:
        raise ExportError(no_form({"tokens": True}, "gguf-adapter"))
    writer = _writer(path, architecture, "adapter", name)
    writer.add_string("adapter.type", "lora")
    alpha, scaled = with_one_alpha(adapter)
    writer.add_float32("adapter.lora.alpha", alpha)
    names = _names(architecture, config)
    tensors: list[_Tensor] = []
    for module, pair in adapter.pairs.items():
        target = _gguf_name(names, f"{module}.weight")
        b = scaled[module]
        tensors.append(_own(target + LORA_A, pair.a))
        tensors.append(_own(target + LORA_B, _in_their_order(f"{module}.weight", b, architecture, config)))
    _write(path, writer, tensors)


def with_one_alpha(adapter: Adapter) -> tuple[float, dict[str, torch.Tensor]]:
    """The alpha of a file, and B of each module, with what its own scale differs from alpha / rank."""
    alphas = {pair.scale * pair.a.shape[0] for pair in adapter.pairs.values()}
    alpha = alphas.pop() if len(alphas) == 1 else adapter.alpha
    factors = {module: pair.scale * pair.a.shape[0] / alpha for module, pair in adapter.pairs.items()}
    return alpha, {
        module: pair.b if factors[module] == 1 else pair.b * factors[module] for module, pair in adapter.pairs.items()
    }


def permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in the order of llama.cpp's rotary embedding.

    transformers rotates value i of a head with value i + half, llama.cpp each even value with the next one.
    """
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def encoded(name: str, block: torch.Tensor, kind: int) -> np.ndarray:
    """The bytes of a block. Raises `ExportError` if its values do not fit in the type."""
    if kind == gguf_types.F16 and block.numel() and block.abs().max() > torch.finfo(torch.float16).max:
        raise ExportError(f"{name} has values that do not fit in fp16; use --type bf16")
    return gguf_types.encode(block, kind)


def _write(path: Path, writer: Any, tensors: Sequence[_Tensor]) -> None:
    for tensor in tensors:
        _announce(writer, tensor)
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    with path.open("ab") as file:
        for tensor in tensors:
            _pad(file)
            for block in tensor.blocks():
                file.write(encoded(tensor.name, block, tensor.kind).data)
        _pad(file)
        flush_to_disk(file)


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _announce(writer: Any, tensor: _Tensor) -> None:
    from gguf import GGMLQuantizationType

    # The writer takes the shape of a quantised tensor in bytes.
    is_q8 = tensor.kind == gguf_types.Q8_0
    shape = (*tensor.shape[:-1], gguf_types.bytes_of(tensor.kind, tensor.shape[-1:])) if is_q8 else tensor.shape
    dtype = np.dtype(np.uint8 if is_q8 else np.float32)
    size = gguf_types.bytes_of(tensor.kind, tensor.shape)
    writer.add_tensor_info(tensor.target, shape, dtype, size, GGMLQuantizationType(tensor.kind))


def _own(target: str, values: torch.Tensor) -> _Tensor:
    """A small tensor in F32."""
    return _Tensor(target, target, tuple(values.shape), gguf_types.F32, lambda: iter((values,)))


def _blocks(name: str, weights: Weights, architecture: Architecture, config: Any) -> Iterator[torch.Tensor]:
    if architecture.is_permuted and (".q_proj." in name or ".k_proj." in name):
        yield _in_their_order(name, whole(weights, name), architecture, config)
    elif architecture.norm_offset and name.endswith("norm.weight"):
        yield whole(weights, name) + architecture.norm_offset
    else:
        yield from weights.blocks(name)


def _in_their_order(name: str, tensor: torch.Tensor, architecture: Architecture, config: Any) -> torch.Tensor:
    if architecture.is_permuted and ".q_proj." in name:
        return permuted(tensor, config.num_attention_heads)
    if architecture.is_permuted and ".k_proj." in name:
        return permuted(tensor, config.num_key_value_heads)
    return tensor


def _writer(path: Path, architecture: Architecture, kind: str, name: str) -> Any:
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ExportError("a GGUF file needs the package gguf: pip install 'trainhop[export]'") from error
    writer = GGUFWriter(path, architecture.gguf)
    writer.add_type(kind)
    writer.add_name(name)
    return writer


def _names(architecture: Architecture, config: Any) -> Any:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    found: Mapping[str, MODEL_ARCH] = {text: arch for arch, text in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(found[architecture.gguf], config.num_hidden_layers)


def _gguf_name(names: Any, tensor: str) -> str:
    found = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ExportError(f"{tensor} has no place in a GGUF file of this architecture; it cannot be exported")
    return found
