"""Copies tensors to host memory with little delay for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

Ready = Callable[[], None]
"""Waits until the arrays are filled. They must not be read before."""


class HostCopy:
    """Takes copies one after another. A copy stays valid until the second copy after it.

    GPU tensors are packed into one block on the GPU. A separate stream copies the block to pinned memory while training
    continues. There are two pinned buffers, so that one can be written to a file while the next is filled.
    """

    def __init__(self) -> None:
        self._layout: _Layout | None = None
        self._turn = 0

    def take(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], Ready]:
        """Arrays by name, and a function that waits until they are filled. CPU tensors are copied at once."""
        arrays = {
            name: tensor.detach().to("cpu", copy=True).contiguous().numpy()
            for name, tensor in tensors.items()
            if not tensor.is_cuda
        }
        on_gpu = {name: tensor for name, tensor in tensors.items() if tensor.is_cuda}
        if not on_gpu:
            return arrays, _at_once
        if self._layout is None or not self._layout.is_of(on_gpu):
            self._layout = _Layout(on_gpu)
        self._turn = 1 - self._turn
        views, done = self._layout.bring(self._turn)
        return arrays | views, done.synchronize


class _Layout:
    """The offsets of the tensors in one block of bytes. They are the same at every save."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        # Larger items first, which keeps every tensor aligned.
        order = sorted(tensors, key=lambda name: -tensors[name].element_size())
        self._addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self._pieces = [tensors[name].detach().view(-1).view(torch.uint8) for name in order]
        size = sum(piece.numel() for piece in self._pieces)
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._views = [_views(buffer.numpy(), order, tensors) for buffer in self._buffers]
        self._stream = torch.cuda.Stream()

    def is_of(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether this layout was made for these tensors."""
        return {name: tensor.data_ptr() for name, tensor in tensors.items()} == self._addresses

    def bring(self, turn: int) -> tuple[dict[str, np.ndarray], torch.cuda.Event]:
        packed = torch.cat(self._pieces)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._buffers[turn].copy_(packed, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        packed.record_stream(self._stream)
        return self._views[turn], done


def _views(raw: np.ndarray, order: list[str], tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    kinds = {dtype: torch.empty(0, dtype=dtype).numpy().dtype for dtype in {t.dtype for t in tensors.values()}}
    views: dict[str, np.ndarray] = {}
    at = 0
    for name in order:
        tensor = tensors[name]
        views[name] = raw[at : at + tensor.nbytes].view(kinds[tensor.dtype]).reshape(tuple(tensor.shape))
        at += tensor.nbytes
    return views


def _at_once() -> None:
    pass
