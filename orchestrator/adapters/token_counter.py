"""Counting tokens with a base model's own tokenizer, where its file can be had without loading the model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import InvalidError
from orchestrator.ports import Catalog

KEPT = 4
Count = Callable[[list[str]], list[int]]
"""Tokens of each of these texts."""


class TokenCounters:
    """Makes a counter for a model; None where the library or the tokenizer's file is missing."""

    def __init__(self, catalog: Catalog, *, offline: bool) -> None:
        self._catalog, self._offline = catalog, offline
        self._kept: OrderedDict[str, Count] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, model: str) -> Count | None:
        """The counter for a model that a job may name."""
        if not model:
            return None
        with self._lock:
            if model not in self._kept:
                made = self._make(model)
                if made is None:
                    return None
                self._kept[model] = made
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[model]

    def _make(self, model: str) -> Count | None:
        try:
            from tokenizers import Tokenizer

            file = self._file(self._catalog.model(model).name)
            tokenizer: Any = Tokenizer.from_file(str(file)) if file else None
        except (ImportError, InvalidError):
            return None
        except Exception:  # noqa: BLE001  the library raises bare exceptions for files that it cannot read
            return None
        if tokenizer is None:
            return None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda texts: [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _file(self, name: str) -> Path | None:
        folder = Path(name)
        if folder.is_absolute():
            file = folder / "tokenizer.json"
            return file if file.is_file() else None
        if self._offline:
            return None
        from huggingface_hub import hf_hub_download

        repo, _, revision = name.partition("@")
        return Path(hf_hub_download(repo, "tokenizer.json", revision=revision or None))
