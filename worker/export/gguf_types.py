"""The types of tensors in the GGUF files that are written here: F32, F16, BF16 and Q8_0. Encoding and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
"""Numbers of ggml's types."""
FILE_TYPES = {F16: 1, Q8_0: 7, BF16: 32}
"""Numbers of `general.file_type`."""
Q8_BLOCK, Q8_BYTES = 32, 34
"""Q8_0: 32 values with 8 bits, after their scale in fp16."""


def stored_type(wanted: int, shape: Sequence[int]) -> int:
    """The type of a tensor in a file of type `wanted`: vectors stay in F32, rows that no block divides in F16."""
    if len(shape) < 2:
        return F32
    return F16 if wanted == Q8_0 and shape[-1] % Q8_BLOCK else wanted


def bytes_of(kind: int, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    count = prod(shape)
    return count // Q8_BLOCK * Q8_BYTES if kind == Q8_0 else count * (4 if kind == F32 else 2)


def encode(block: torch.Tensor, kind: int) -> np.ndarray:
    """The bytes of a block of rows in fp32."""
    if kind == Q8_0:
        from gguf import GGMLQuantizationType, quants

        return quants.quantize(block.contiguous().numpy(), GGMLQuantizationType.Q8_0)
    dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[kind]
    return block.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy()


def decode(data: np.ndarray, kind: int, shape: Sequence[int]) -> torch.Tensor:
    """Rows in fp32 from their bytes. Written here and not taken from the package that encodes them."""
    if kind == Q8_0:
        blocks = data.reshape(-1, Q8_BYTES)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        with np.errstate(invalid="ignore"):  # a damaged scale may be infinite
            values = blocks[:, 2:].copy().view(np.int8).astype(np.float32) * scales
        return torch.from_numpy(values).reshape(tuple(shape))
    dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[kind]
    return torch.from_numpy(data.copy().reshape(-1)).view(dtype).reshape(tuple(shape)).float()
