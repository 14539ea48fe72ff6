"""Logits of a model on a few texts, without loading it: each layer reads its weight from the files when it runs.

So a model of 7B needs the memory of one block of its largest tensor. The code that computes is that of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.export.adapter import Pair
from worker.export.errors import CheckError, ExportError
from worker.export.tensor_files import Weights, whole
from worker.shared.passages import passages

ROWS, LENGTH = 4, 32
"""Texts of the probe, and their tokens."""


def probe_tokens(folder: Path | None, vocabulary_rows: int) -> torch.Tensor:
    """Tokens of shape [ROWS, LENGTH]: the beginnings of passages. Without a tokenizer in `folder`, fixed numbers."""
    path = None if folder is None else folder / "tokenizer.json"
    if path is not None and path.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        found = [tokenizer.encode(passage.text).ids[:LENGTH] for passage in passages()]
        rows = [ids for ids in found if len(ids) == LENGTH][:ROWS]
        if len(rows) == ROWS and max(map(max, rows)) < vocabulary_rows:
            return torch.tensor(rows)
    numbers = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    return (numbers * 7919 + 13) % vocabulary_rows


def logits(
    config: Any, weights: Weights, tokens: torch.Tensor, updates: Mapping[str, Pair] | None = None
) -> torch.Tensor:
    """Logits in fp32, of shape [rows, length, vocabulary], with the adapter's updates applied as LoRA where given.

    Raises `CheckError` if weights are missing or do not fit.
    """
    model, used = _model(config, weights, updates or {}), torch.unique(tokens)
    _fill_small(model, weights, used)
    numbers = torch.searchsorted(used, tokens)
    with torch.inference_mode():
        return model(input_ids=numbers, use_cache=False).logits.float()


class _Streamed(nn.Module):
    """A linear layer whose weight stays in its file."""

    def __init__(self, weights: Weights, name: str, bias: torch.Tensor | None, pair: Pair | None) -> None:
        super().__init__()
        self._weights, self._name, self._bias, self._pair = weights, name, bias, pair

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.cat([x @ block.T for block in self._weights.blocks(self._name)], dim=-1)
        pair = self._pair
        if pair is not None:
            found = found + (x @ pair.a.T) @ pair.b.T * pair.scale
            if pair.magnitude is not None:
                found = found * (pair.magnitude / self._lengths(pair))
        return found if self._bias is None else found + self._bias

    def _lengths(self, pair: Pair) -> torch.Tensor:
        """The length of each row of weight and update, which DoRA replaces."""
        found: list[torch.Tensor] = []
        start = 0
        for block in self._weights.blocks(self._name):
            stop = start + block.shape[0]
            found.append((block + pair.scale * (pair.b[start:stop] @ pair.a)).norm(dim=1))
            start = stop
        return torch.cat(found)


def _model(config: Any, weights: Weights, updates: Mapping[str, Pair]) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.eval()
    names = set(weights.names())
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            stored = f"{name}.weight"
            if name == "lm_head" and stored not in names:
                stored = "model.embed_tokens.weight"
            _check(weights, names, stored, tuple(module.weight.shape))
            bias = None if module.bias is None else _vector(weights, names, f"{name}.bias", module.bias.shape)
            model.set_submodule(name, _Streamed(weights, stored, bias, updates.get(name)))
    return model


def _fill_small(model: Any, weights: Weights, used: torch.Tensor) -> None:
    """Norms as a whole, and of the embedding the rows that are used."""
    names = set(weights.names())
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        if name == "model.embed_tokens.weight":
            _check(weights, names, name, tuple(parameter.shape))
            found = _rows(weights, name, used)
            owner.padding_idx = None
        else:
            found = _vector(weights, names, name, parameter.shape)
        setattr(owner, name.rpartition(".")[2], nn.Parameter(found, requires_grad=False))


def _rows(weights: Weights, name: str, used: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    start = 0
    for block in weights.blocks(name):
        stop = start + block.shape[0]
        found.append(block[used[(used >= start) & (used < stop)] - start])
        start = stop
    return torch.cat(found)


def _vector(weights: Weights, names: set[str], name: str, shape: Any) -> torch.Tensor:
    _check(weights, names, name, tuple(shape))
    return whole(weights, name)


def _check(weights: Weights, names: set[str], name: str, shape: tuple[int, ...]) -> None:
    if name not in names:
        raise CheckError(f"{name} is missing")
    if weights.shape(name) != shape:
        raise CheckError(f"{name} has the shape {list(weights.shape(name))}, and the config says {list(shape)}")


def model_config(folder: Path) -> Any:
    """The config of a model's folder as transformers reads it. Raises `ExportError`."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"the config of {folder} cannot be read: {str(error).splitlines()[0]}") from error
