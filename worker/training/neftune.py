"""NEFTune: noise on the embeddings of training rows (arXiv 2310.05914).

The noise of a row depends on the job's seed, the step and the row alone. So it is the same in any micro-batch, on any
number of GPUs, and after a hand-off.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch

_STREAM = 4
"""First word of the entropy list. Those of epochs, validation split and probes are 0 to 3."""
_PER_WORD = 4
"""16-bit numbers in one random word. They are finer than the embeddings of a model in 16 bits."""


def row_noise(tokens: np.ndarray, width: int, *, alpha: float, seed: int, step: int) -> np.ndarray:
    """Noise of a row in a 0-based step: fp32 of shape (length, width).

    `tokens` are the row's ids without padding. The noise is uniform in +-alpha / sqrt(length * width).
    """
    count = len(tokens) * width
    entropy = np.random.SeedSequence([_STREAM, seed, step, zlib.crc32(tokens.astype("<i8").tobytes())])
    words = np.random.Philox(entropy).random_raw(-(-count // _PER_WORD))
    numbers = words.astype("<u8").view("<i2")[:count].astype(np.float32)
    return (numbers * np.float32(alpha / math.sqrt(count) / 2**15)).reshape(len(tokens), width)


class EmbeddingNoise:
    """Adds noise to a model's embeddings while `step` is set and the model is in training mode."""

    def __init__(self, model: Any, alpha: float, seed: int) -> None:
        """`model` is what is called with `input_ids` and `attention_mask`, padded on the right."""
        self.step: int | None = None
        self._alpha, self._seed = alpha, seed
        self._batch: tuple[torch.Tensor, torch.Tensor] | None = None
        model.register_forward_pre_hook(self._note, with_kwargs=True)
        model.get_input_embeddings().register_forward_hook(self._add)

    def _note(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        on = self.step is not None and "attention_mask" in kwargs
        self._batch = (kwargs["input_ids"], kwargs["attention_mask"]) if on else None

    def _add(self, module: Any, _: Any, embedded: torch.Tensor) -> torch.Tensor | None:
        if self.step is None or self._batch is None or not module.training:
            return None
        ids, lengths = self._batch[0].cpu().numpy(), self._batch[1].sum(dim=1).tolist()
        noise = np.zeros(tuple(embedded.shape), dtype=np.float32)
        for row, length in enumerate(lengths):
            noise[row, :length] = row_noise(
                ids[row, :length], noise.shape[2], alpha=self._alpha, seed=self._seed, step=self.step
            )
        return embedded + torch.from_numpy(noise).to(embedded)
