"""Checks a model's limits before training: its number of positions, and its vocabulary.

Beyond these limits a CPU raises a bare `IndexError` and a GPU a CUDA error, at the first step that exceeds them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.training.interface import PermanentError

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.training.encoding import Encoder

_COUNTS = re.compile(r"(^|\.)(wpe|\w*position\w*)$")


@dataclass(frozen=True)
class ModelLimits:
    """Rows of a model's embedding, and of its position table if it has one."""

    tokens: int
    positions: int | None = None

    @classmethod
    def of(cls, causal: Any) -> ModelLimits:
        """The limits of a loaded causal model."""
        return cls(causal.get_input_embeddings().weight.shape[0], _positions(causal))

    def check(self, ids: Sequence[int], what: str) -> None:
        """Raise `PermanentError` if `ids` exceed the limits of the model."""
        if ids and max(ids) >= self.tokens:
            raise PermanentError(
                f"{what} has token {max(ids)}, but the model has only {self.tokens} tokens; use the model's own "
                "tokenizer"
            )
        if self.positions is not None and len(ids) > self.positions:
            raise PermanentError(
                f"{what} has {len(ids)} tokens, but the model supports only {self.positions} positions; set "
                "sequence_len "
                "to that or less"
            )

    def check_job(self, spec: JobSpec) -> None:
        """Raise `PermanentError` if the job may make rows that exceed the limits of the model."""
        if self.positions is not None and spec.sequence_len > self.positions:
            raise PermanentError(
                f"{spec.base_model} supports only {self.positions} positions; set sequence_len to that or less"
            )

    def check_prompts(self, spec: JobSpec, encoder: Encoder, chat: bool) -> None:
        """Raise `PermanentError` for a sample prompt that leaves no positions for an answer."""
        for number, prompt in enumerate(spec.sample_prompts, 1):
            ids = encoder.prompt_ids(prompt, chat)
            if self.answer_tokens(len(ids), 1) < 1:
                raise PermanentError(
                    f"sample prompt {number} has {len(ids)} tokens and leaves no space for an answer: "
                    f"{spec.base_model} "
                    f"supports only {self.positions} positions; shorten it"
                )
            self.check(ids, f"sample prompt {number}")

    def answer_tokens(self, used: int, wanted: int) -> int:
        """`wanted` tokens, or the number of positions after `used` ones if that is less."""
        return wanted if self.positions is None else min(wanted, self.positions - used)


def _positions(causal: Any) -> int | None:
    from torch import nn  # a preview checks rows without it

    decoder = causal.get_decoder()
    limit = getattr(causal.config.get_text_config(), "max_position_embeddings", None)
    for name, module in decoder.named_modules():
        # An image tower in the decoder also has a position table, but a smaller one.
        if isinstance(module, nn.Embedding) and _COUNTS.search(name) and module.num_embeddings >= (limit or 0):
            rows = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            return min(rows, limit or rows)  # some tables begin with rows that are not positions

    tables = [table for name, table in decoder.named_buffers() if name.endswith("embed_positions")]
    return tables[0].shape[0] if tables else None
