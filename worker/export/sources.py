"""What an export is made from: adapter, base model, and the tokenizer that belongs to both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.export.adapter import Adapter, check_fit, read_adapter
from worker.export.architectures import Architecture, architecture_of, read_config
from worker.export.errors import ExportError
from worker.export.merge import Merged, Onto
from worker.export.probe import model_config
from worker.export.tensor_files import TensorFolder, WithRows
from worker.shared.files import expanded

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """`config` is as transformers reads it, `raw_config` as it is written. `tokenizer` is a folder."""

    adapter: Adapter
    base: Path
    base_name: str
    files: TensorFolder
    architecture: Architecture
    config: Any
    raw_config: dict[str, Any]
    tokenizer: Path

    def weights(self, *, with_adapter: bool, onto: Onto) -> Merged:
        """Base model with or without the adapter."""
        adapter = self.adapter if with_adapter else None
        return Merged(self.files, adapter, onto, is_tied=bool(self.config.tie_word_embeddings))

    @property
    def name(self) -> str:
        """A short name for the model."""
        return f"{Path(self.base_name.partition('@')[0]).name}-lora"


def open_sources(
    adapter_folder: Path, base: str | None, say: Callable[[str], None], base_folder: str | None = None
) -> Sources:
    """Find and compare everything. `base` is a folder or an id on the hub; without it the adapter names its base.

    With `base_folder`, the base model is there and `base` is its name.
    Raises `ExportError` for an adapter of another base or kind, and for a base that cannot be had or exported.
    """
    adapter = read_adapter(adapter_folder)
    name = base or named_base(adapter)
    folder = Path(base_folder) if base_folder is not None else resolved(name, say)
    raw = read_config(folder)
    architecture = architecture_of(raw)
    files, config = WithRows(folder, adapter.rows), model_config(folder)
    most = max((max(rows.numbers, default=0) + 1 for rows in adapter.rows.values()), default=0)
    if most > config.vocab_size:
        config.vocab_size = raw["vocab_size"] = most
    sources = Sources(
        adapter=adapter,
        base=folder,
        base_name=name,
        files=files,
        architecture=architecture,
        config=config,
        raw_config=raw,
        tokenizer=tokenizer_folder(adapter_folder, folder),
    )
    check_fit(adapter, sources.weights(with_adapter=False, onto="original"))
    check_hash(adapter, folder, say)
    return sources


def named_base(adapter: Adapter) -> str:
    """The base model that an adapter names. Raises `ExportError` if it names none."""
    if not adapter.base_name:
        raise ExportError("the adapter does not say what its base model is; name its folder with --base")
    is_plain = adapter.revision is None or expanded(adapter.base_name).is_absolute()
    return adapter.base_name if is_plain else f"{adapter.base_name}@{adapter.revision}"


def resolved(name: str, say: Callable[[str], None]) -> Path:
    """The folder of a base model, downloaded if need be. Raises `ExportError`."""
    from worker.training import base_model
    from worker.training.interface import PermanentError, UnfitMachineError

    try:
        return base_model.resolve(name, say=say)
    except (PermanentError, UnfitMachineError) as error:
        raise ExportError(f"{error}; or name a folder that has it with --base") from error


def tokenizer_folder(adapter: Path, base: Path) -> Path:
    """The tokenizer that the adapter was trained with, else the base model's."""
    return adapter if (adapter / "tokenizer.json").is_file() else base


def check_hash(adapter: Adapter, folder: Path, say: Callable[[str], None]) -> None:
    """Raise `ExportError` if the adapter was trained on a base model with other files, as far as that is known."""
    from worker.training import base_model

    if (wanted := adapter.recipe.get("base_sha256")) is None:
        return
    say("comparing the base model with the one that the adapter was trained on")
    found = base_model.sha256(folder)
    if found != wanted:
        raise ExportError(
            f"the adapter was trained on another base model: its files have the sha256 {wanted[:16]}, those in "
            f"{folder} {found[:16]}; name the folder of the right one with --base"
        )
