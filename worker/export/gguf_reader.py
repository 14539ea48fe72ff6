"""Reads a GGUF file back, without the package that wrote it, as tensors with the names and order of transformers."""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from worker.export import gguf_types
from worker.export.adapter import Pair
from worker.export.architectures import Architecture
from worker.export.errors import CheckError
from worker.export.tensor_files import row_blocks

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES = 10_000_000
_MAX_TEXT = 64 << 20
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GEMMA_PARTS = _PARTS | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI_PARTS = _PARTS | {"ffn_up": "mlp.gate_up_proj"}
_SETTINGS = {
    "vocab_size": "vocab_size",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GEMMA2_SETTINGS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_EXTRA = ("rope_freqs", "rope_factors_long", "rope_factors_short")


class _Entry(NamedTuple):
    kind: int
    shape: tuple[int, ...]
    offset: int


class GgufFile:
    """The settings and tensors of a file."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckError` if the file is not whole."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.settings, self.tensors, self.begin = _head(file)
        except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError) as error:
            raise CheckError(f"{path.name} is not a GGUF file that can be read back ({error})") from error
        size = path.stat().st_size
        for name, entry in self.tensors.items():
            if self.begin + entry.offset + gguf_types.bytes_of(entry.kind, entry.shape) > size:
                raise CheckError(f"{path.name} is cut off in {name}")

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor in fp32."""
        entry = self.tensors[name]
        shape = (stop - start, *entry.shape[1:])
        row = gguf_types.bytes_of(entry.kind, (1, *entry.shape[1:]))
        offset = self.begin + entry.offset + start * row
        data = np.fromfile(self.path, dtype=np.uint8, count=(stop - start) * row, offset=offset)
        return gguf_types.decode(data, entry.kind, shape)


class GgufModel:
    """A file with a whole model. See `Weights`."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        """Raises `CheckError` if the file is not whole, or has tensors that no model of this architecture has."""
        self.file = GgufFile(path)
        self._architecture = architecture
        self._heads = _heads(self.file, architecture)
        self._names = {_their_name(name, architecture): name for name in self.file.tensors if not _is_extra(name)}

    def names(self) -> Sequence[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.tensors[self._names[name]].shape

    def extra(self) -> list[str]:
        """Names, as in the file, of tensors that transformers computes from the config."""
        return [name for name in self.file.tensors if _is_extra(name)]

    def kind(self, name: str) -> int:
        """The type in which the tensor is stored."""
        return self.file.tensors[self._names[name]].kind

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        target, shape = self._names[name], self.shape(name)
        if (heads := self._heads.get(target.split(".")[-2])) is not None:
            found = unpermuted(self.file.rows(target, 0, shape[0]), heads)
            yield from (found[start:stop] for start, stop in row_blocks(shape))
            return
        offset = self._architecture.norm_offset if name.endswith("norm.weight") else 0.0
        for start, stop in row_blocks(shape):
            rows = self.file.rows(target, start, stop)
            yield rows - offset if offset else rows


def read_pairs(path: Path, architecture: Architecture, config: Any) -> dict[str, Pair]:
    """The updates of a file with an adapter, by the module of transformers. Raises `CheckError`."""
    file = GgufFile(path)
    if (file.settings.get("general.type"), file.settings.get("adapter.type")) != ("adapter", "lora"):
        raise CheckError(f"{path.name} does not say that it is a LoRA adapter")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    pairs: dict[str, Pair] = {}
    for name in file.tensors:
        target, _, half = name.rpartition(".lora_")
        if half == "b":
            continue
        a = file.rows(name, 0, file.tensors[name].shape[0])
        b = file.rows(f"{target}.lora_b", 0, file.tensors[f"{target}.lora_b"].shape[0])
        if architecture.is_permuted and (count := heads.get(target.split(".")[-2])) is not None:
            b = unpermuted(b, count)
        module = _their_name(target, architecture).removesuffix(".weight")
        pairs[module] = Pair(a, b, file.settings["adapter.lora.alpha"] / a.shape[0])
    return pairs


def unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in the order of transformers: first the even ones of each head, then the odd ones."""
    size = rows.shape[0] // heads
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
    return torch.cat([rows[head * size : (head + 1) * size][order] for head in range(heads)])


def read_config(file: GgufFile, architecture: Architecture, config: Any) -> Any:
    """A copy of `config` with the sizes and settings that the file has, so that a wrong one changes the logits.

    Raises `CheckError` if one is missing.
    """
    found = copy.deepcopy(config)
    names = dict(_SETTINGS) | (_GEMMA2_SETTINGS if architecture.gguf == "gemma2" else {})
    if getattr(config, "head_dim", None):
        names["attention.key_length"] = "head_dim"
    if architecture.gguf in ("gemma2", "gemma3") or (architecture.gguf == "phi3" and config.sliding_window):
        names["attention.sliding_window"] = "sliding_window"
    try:
        for key, attribute in names.items():
            setattr(found, attribute, file.settings[f"{architecture.gguf}.{key}"])
        parameters = found.rope_parameters.get("full_attention", found.rope_parameters)
        parameters["rope_theta"] = file.settings[f"{architecture.gguf}.rope.freq_base"]
    except KeyError as error:
        raise CheckError(f"{file.path.name} lacks the setting {error}") from error
    return found


def _heads(file: GgufFile, architecture: Architecture) -> Mapping[str, int]:
    if not architecture.is_permuted:
        return {}
    prefix = f"{architecture.gguf}.attention.head_count"
    return {"attn_q": file.settings[prefix], "attn_k": file.settings[f"{prefix}_kv"]}


def _is_extra(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in _EXTRA


def _their_name(name: str, architecture: Architecture) -> str:
    stem, _, ending = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{ending}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    parts = _GEMMA_PARTS if architecture.norm_offset else _PHI_PARTS if architecture.gguf == "phi3" else _PARTS
    if found is None or found[2] not in parts:
        raise CheckError(f"the GGUF file has {name}, which a model of this architecture does not have")
    return f"model.layers.{found[1]}.{parts[found[2]]}.{ending}"


def _head(file: BinaryIO) -> tuple[dict[str, Any], dict[str, _Entry], int]:
    if file.read(4) != b"GGUF" or _read(file, "<I") != 3:
        raise ValueError("no GGUF of version 3")
    count, keys = _read(file, "<Q"), _read(file, "<Q")
    if max(count, keys) > _MAX_ENTRIES:
        raise ValueError("too many entries")
    settings: dict[str, Any] = {}
    for _ in range(keys):
        key = _text(file)
        settings[key] = _value(file, _read(file, "<I"))
    tensors: dict[str, _Entry] = {}
    for _ in range(count):
        name = _text(file)
        sizes = [_read(file, "<Q") for _ in range(_read(file, "<I"))]
        kind = _read(file, "<I")
        if kind not in (gguf_types.F32, gguf_types.F16, gguf_types.BF16, gguf_types.Q8_0) or prod(sizes) > 2**40:
            raise ValueError(f"{name} has the type {kind}")
        tensors[name] = _Entry(kind, tuple(reversed(sizes)), _read(file, "<Q"))
    alignment = settings.get("general.alignment", 32)
    return settings, tensors, -(-file.tell() // alignment) * alignment


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _read(file, "<I"), _read(file, "<Q")
        if count > _MAX_ENTRIES:
            raise ValueError("an array is too long")
        return [_value(file, inner) for _ in range(count)]
    return _read(file, _SCALARS[kind])


def _text(file: BinaryIO) -> str:
    size = _read(file, "<Q")
    if size > _MAX_TEXT:
        raise ValueError("a text is too long")
    return file.read(size).decode()


def _read(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
