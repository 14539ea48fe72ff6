"""What a model has room for, asked before training: how far it counts, and which tokens it knows.

Beyond either a CPU raises a bare `IndexError` and a GPU an error of its own, at whichever step first comes there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from worker.training.interface import PermanentError

if TYPE_CHECKING:
    from worker.shared.messages import JobSpec
    from worker.training.encoding import Encoder

_COUNTS = re.compile(r"(^|\.)(wpe|\w*position\w*)$")


@dataclass(frozen=True)
class Room:
    """Rows of a model's embedding, and of its table of positions where it has one."""

    tokens: int
    positions: int | None = None

    @classmethod
    def of(cls, causal: Any) -> Room:
        """What a loaded causal model has."""
        return cls(causal.get_input_embeddings().weight.shape[0], _positions(causal))

    def check(self, ids: Sequence[int], what: str) -> None:
        """Raise `PermanentError` if the model cannot be given `ids`."""
        if ids and max(ids) >= self.tokens:
            raise PermanentError(
                f"{what} holds token {max(ids)}, and the model knows only {self.tokens}; use the tokenizer that the model "
                "was made with"
            )
        if self.positions is not None and len(ids) > self.positions:
            raise PermanentError(
                f"{what} has {len(ids)} tokens, and the model counts no further than {self.positions}; set sequence_len "
                "to no more than that"
            )

    def check_job(self, spec: JobSpec) -> None:
        """Raise `PermanentError` if the job may make rows that the model cannot be given."""
        if self.positions is not None and spec.sequence_len > self.positions:
            raise PermanentError(
                f"{spec.base_model} counts no further than {self.positions} tokens; set sequence_len to no more than that"
            )

    def check_prompts(self, spec: JobSpec, encoder: Encoder, chat: bool) -> None:
        """Raise `PermanentError` for a sample prompt that leaves no room for an answer."""
        for number, prompt in enumerate(spec.sample_prompts, 1):
            ids = encoder.prompt_ids(prompt, chat)
            if self.left(len(ids), 1) < 1:
                raise PermanentError(
                    f"sample prompt {number} has {len(ids)} tokens, which leaves no room for an answer: {spec.base_model} "
                    f"counts no further than {self.positions}; shorten it"
                )
            self.check(ids, f"sample prompt {number}")

    def left(self, used: int, wanted: int) -> int:
        """`wanted` tokens, or as many as there are positions after `used` ones."""
        return wanted if self.positions is None else min(wanted, self.positions - used)


def _positions(causal: Any) -> int | None:
    decoder = causal.get_decoder()
    limit = getattr(causal.config.get_text_config(), "max_position_embeddings", None)
    for name, module in decoder.named_modules():
        # A tower for images that stands inside has a table as well, but not of as many rows.
        if isinstance(module, nn.Embedding) and _COUNTS.search(name) and module.num_embeddings >= (limit or 0):
            rows = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            return min(rows, limit or rows)  # some tables begin with rows that stand for no position
    tables = [table for name, table in decoder.named_buffers() if name.endswith("embed_positions")]
    return tables[0].shape[0] if tables else None
