"""Which warnings of the training libraries are hidden. Others are printed: they may tell of a wrong model."""

from __future__ import annotations

import logging
import warnings

EXPECTED = (
    "Setting `pad_token_id` to `eos_token_id`",
    "The following generation flags are not valid and may be ignored",
    "The tokenizer has new PAD/BOS/EOS tokens",
    "Token indices sequence length is longer than the specified maximum",
    "`loss_type=None` was set in the config",
    "`use_cache=True` is incompatible with gradient checkpointing",
    "There seems not to be a single sample in your epoch_iterator",
)
"""Beginnings or parts of messages about settings that Trainhop makes on purpose."""


class ExpectedWarnings(logging.Filter):
    """Drops the messages in `EXPECTED`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print the record."""
        return record.levelno > logging.WARNING or not any(text in record.getMessage() for text in EXPECTED)


def hide_expected_warnings() -> None:
    """Hide the expected warnings of the libraries, and progress bars."""
    import transformers

    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        if not any(isinstance(known, ExpectedWarnings) for known in handler.filters):
            handler.addFilter(ExpectedWarnings())
    warnings.filterwarnings("ignore", message=".*Paged optimizers are not supported on CPU.*")
