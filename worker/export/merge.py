"""Base model plus adapter, tensor by tensor in fp32, with the bits of PEFT's `merge_and_unload`.

The update of one tensor is made whole, because blocks of a product can have other bits than the product. It is the
largest temporary: 235 MB for a 7B model, unless the adapter changes the output layer. Everything else is a block of
rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from worker.export.adapter import Adapter, Pair
from worker.export.architectures import is_quantised_in_training
from worker.export.errors import ExportError
from worker.export.tensor_files import TensorFolder, row_blocks

Onto = Literal["original", "nf4"]
NF4_BLOCK = 64


class Merged:
    """The weights of base model and adapter. Without an adapter, those of the base model. See `Weights`.

    `onto` says which base: the original, or what a job with `adapter: qlora` computes with, which is its NF4 form.
    """

    def __init__(
        self, base: TensorFolder, adapter: Adapter | None, onto: Onto = "original", *, is_tied: bool = False
    ) -> None:
        """If `is_tied`, the output layer is the embedding, and a stored copy of it is left out."""
        self._base, self._adapter, self._onto = base, adapter, onto
        self._left_out = ("rotary_emb.inv_freq", "lm_head.weight") if is_tied else ("rotary_emb.inv_freq",)

    def names(self) -> Sequence[str]:
        return [name for name in self._base.names() if not name.endswith(self._left_out)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        pair = self._adapter.pair(name) if self._adapter is not None else None
        update = None if pair is None else (pair.b @ pair.a).mul_(pair.scale)
        start = 0
        for block in self._base_blocks(name):
            stop = start + (block.shape[0] if block.ndim else 1)
            yield block if pair is None or update is None else _updated(block, update[start:stop], pair, start)
            start = stop

    def _base_blocks(self, name: str) -> Iterator[torch.Tensor]:
        if self._onto == "nf4" and is_quantised_in_training(name):
            stored = self._base.rows(name, 0, self._base.shape(name)[0])
            rounded = dequantised_nf4(stored)
            yield from (rounded[start:stop].float() for start, stop in row_blocks(rounded.shape))
        else:
            # Blocks of a stored fp32 tensor are its own memory, read for this call.
            yield from self._base.blocks(name)


def _updated(block: torch.Tensor, update: torch.Tensor, pair: Pair, start: int) -> torch.Tensor:
    """Rows of a weight from row `start` on, with their update. With DoRA each row has a length of its own."""
    block.add_(update)
    if pair.magnitude is not None:
        block.mul_((pair.magnitude[start : start + len(block)] / torch.linalg.norm(block, dim=1))[:, None])
    return block


def dequantised_nf4(weight: torch.Tensor) -> torch.Tensor:
    """The weight after bitsandbytes has put it into doubly quantised NF4 and back, in the same type.

    Raises `ExportError` where bitsandbytes is missing.
    """
    functional = bitsandbytes()
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return functional.dequantize_4bit(codes, state)


def bitsandbytes() -> type:
    """The functions of bitsandbytes. Raises `ExportError` where they are missing."""
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ExportError(
            "the NF4 form of the base model needs bitsandbytes, which is not installed here; merge into the original"
        ) from error
    return functional  # pyright: ignore[reportReturnType]  a module


def has_bitsandbytes() -> bool:
    """Whether the NF4 form can be computed here."""
    try:
        bitsandbytes()
    except ExportError:
        return False
    return True
