"""Copies of tensors in host memory, made so that training hardly waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

Ready = Callable[[], None]
"""Waits until the arrays hold what was copied; until then they must not be read."""


class HostCopy:
    """Takes copies one after another; a copy stays what it is until the second one after it is taken.

    From a GPU, tensors are packed into one block there, which a stream of its own brings into pinned memory while training
    goes on. Two such buffers are kept: one may be being written to a file while the next is filled.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._turn = 0
        self._stream: torch.cuda.Stream | None = None

    def take(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], Ready]:
        """Arrays by name, and what to wait for before reading them. Tensors elsewhere than on a GPU are copied at once."""
        arrays = {
            name: tensor.detach().to("cpu", copy=True).contiguous().numpy()
            for name, tensor in tensors.items()
            if not tensor.is_cuda
        }
        on_gpu = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_cuda}
        if not on_gpu:
            return arrays, _at_once
        views, done = self._bring(on_gpu)
        return arrays | views, done.synchronize

    def _bring(self, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], torch.cuda.Event]:
        # Larger items first keeps every tensor aligned.
        order = sorted(tensors, key=lambda name: -tensors[name].element_size())
        packed = torch.cat([tensors[name].contiguous().view(-1).view(torch.uint8) for name in order])
        host = self._buffer(packed.numel())
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host.copy_(packed, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        packed.record_stream(self._stream)
        raw, at = host.numpy(), 0
        views: dict[str, np.ndarray] = {}
        for name in order:
            tensor = tensors[name]
            piece = raw[at : at + tensor.nbytes]
            views[name] = piece.view(torch.empty(0, dtype=tensor.dtype).numpy().dtype).reshape(tuple(tensor.shape))
            at += tensor.nbytes
        return views, done

    def _buffer(self, size: int) -> torch.Tensor:
        self._turn = 1 - self._turn
        held = self._buffers[self._turn]
        if held is None or held.numel() != size:
            held = self._buffers[self._turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return held


def _at_once() -> None:
    pass
