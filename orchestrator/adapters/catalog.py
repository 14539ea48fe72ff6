"""Looks up the models and datasets that a job names, in allowed folders and on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.adapters.hub import CHAT_TEMPLATE, MAX_CONFIG_BYTES, TOKENIZER_CONFIG, Hub
from orchestrator.adapters.hub_search import search_models
from orchestrator.adapters.model_config import linear_modules, positions
from orchestrator.adapters.weight_names import header_of_file
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import BaseModel, DatasetFile, FoundModel, ModelFile
from worker.shared.checkpoint_header import MAX_HEADER_BYTES
from worker.shared.files import expanded
from worker.shared.memory_estimate import Shape
from worker.shared.model_support import model_type, needs_own_code, present_weights

_CHUNK_BYTES = 1 << 20


class FolderAndHubCatalog:
    """Implements `ports.Catalog`. A job may only name files of this computer that are in the `allowed` folders."""

    def __init__(
        self,
        allowed: Sequence[Path],
        trusted_models: frozenset[str],
        *,
        offline: bool,
        endpoint: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """`endpoint` and `cache` replace the hub's address and the client's own folder, for tests."""
        self._allowed = [folder.resolve() for folder in allowed]
        self._trusted = trusted_models
        self._hub = Hub(is_offline=offline, endpoint=endpoint, cache=cache)

    def model(self, name: str, token: str | None = None, *, with_modules: bool = False) -> BaseModel:
        if _looks_like_path(name):
            folder = self._permitted(name, "/base_model")
            with _readable(folder / "config.json"):
                config = _config(folder)
                self._refuse_custom_code(config, name)
                shape, kind, limits = Shape.of(config), model_type(config), positions(config)
            weights = _weights(folder)
            return BaseModel(
                name=str(folder),
                parameters=sum(math.prod(shape) for shape in weights.values()) or None,
                shape=shape,
                kind=kind,
                modules=linear_modules(weights),
                **limits,
            )
        return self._hub.model(
            name, token, lambda config: self._refuse_custom_code(config, name), with_modules=with_modules
        )

    def search(self, words: str, token: str | None = None) -> Sequence[FoundModel]:
        return search_models(self._hub, words, token)

    def has_chat_template(self, name: str, token: str | None = None) -> bool | None:
        if not _looks_like_path(name):
            return self._hub.has_chat_template(name, token)
        folder = self._permitted(name, "/base_model")
        config = folder / TOKENIZER_CONFIG
        if (folder / CHAT_TEMPLATE).is_file() or not config.is_file():
            return (folder / CHAT_TEMPLATE).is_file()
        with _readable(config), config.open("rb") as stream:
            return bool(dict(json.loads(stream.read(MAX_CONFIG_BYTES))).get("chat_template"))

    def dataset(
        self, path: str, split: str, token: str | None = None, *, subset: str | None = None
    ) -> Sequence[DatasetFile]:
        if _looks_like_path(path):
            file = self._permitted(path, "/path")
            return (DatasetFile(path=file, name=file.name),)
        return self._hub.dataset(path, split, token, subset)

    def benchmark(self, repo: str, file: str, token: str | None = None) -> DatasetFile:
        return self._hub.benchmark(repo, file, token)

    def files(self, name: str, token: str) -> Sequence[ModelFile]:
        if _looks_like_path(name):
            return ()
        return self._hub.files(name, token, with_code=name.partition("@")[0] in self._trusted)

    def refuse_without_write(self, repo: str, token: str) -> None:
        self._hub.refuse_without_write(repo, token)

    def whose(self, token: str) -> str:
        return self._hub.whose(token)

    def _permitted(self, name: str, pointer: str) -> Path:
        try:
            path = expanded(name).resolve()
            path.exists()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
            reason = error.strerror if isinstance(error, OSError) else error
            message = f"{name} is not a path that this computer can use: {reason}"
            raise InvalidError(message, [(pointer, message)]) from None
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            message = (
                f"{name} is a path on the server but not in an allowed folder. "
                "Upload the file, use a Hugging Face id, or ask the operator to add the folder to "
                "TRAINHOP_ALLOWED_FOLDERS."
            )
            raise InvalidError(message, [(pointer, message)])
        if not path.exists():
            raise InvalidError(f"{name} does not exist", [(pointer, f"{name} does not exist")])
        return path

    def _refuse_custom_code(self, config: dict[str, Any], name: str) -> None:
        if needs_own_code(config) and name.partition("@")[0] not in self._trusted:
            message = (
                f"{name} needs to run its own code, which is not allowed. Ask the operator to list it in "
                "TRAINHOP_TRUSTED_MODELS"
            )
            raise InvalidError(message, [("/base_model", message)])


def _looks_like_path(name: str) -> bool:
    """Whether the name is not a hub id. A hub id is `org/name` or `name` in plain characters.

    Any other name could reach a file on disk.
    """
    plain = name.partition("@")[0]
    return name.startswith((".", "/", "~")) or plain.count("/") > 1 or "\\" in name or ".." in name or ":" in name


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    if not config.is_file():
        message = f"{folder} has no config.json, so it is not a model folder. Choose another one."
        raise InvalidError(message, [("/base_model", message)])
    with config.open("rb") as stream:
        return dict(json.loads(stream.read(MAX_CONFIG_BYTES)))


def _weights(folder: Path) -> dict[str, list[int]]:
    """The shapes in the headers of the weight files by name, without reading the weights."""
    found: dict[str, list[int]] = {}
    for file in present_weights(folder):
        with _readable(file), file.open("rb") as stream:
            header = header_of_file(iter(partial(stream.read, _CHUNK_BYTES), b""), 8 + MAX_HEADER_BYTES)
            found |= {name: _shape(tensor) for name, tensor in header.items()}
    return found


def _shape(tensor: dict[str, Any]) -> list[int]:
    shape = [int(length) for length in tensor["shape"]]
    if min(shape, default=0) < 0:
        raise ValueError("a negative length")
    return shape


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Name a file that is not what its name says. It may be cut off, or its model may be under way."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        message = f"{file} is damaged or cannot be read. Download the model again."
        raise InvalidError(message, [("/base_model", message)]) from None
