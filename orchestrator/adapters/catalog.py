"""Where models and datasets that a job names are looked up: folders the operator has allowed, and the Hugging Face hub."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.adapters.hub import Hub
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.providers import BaseModel, DatasetFile, ModelFile
from worker.shared.memory_estimate import Shape


class FolderAndHubCatalog:
    """Implements `ports.Catalog`. `allowed` are the only folders of this computer from which a job may name anything."""

    def __init__(
        self,
        allowed: Sequence[Path],
        trusted_models: frozenset[str],
        *,
        offline: bool,
        endpoint: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """`endpoint` and `cache` stand in for the hub's address and the client's own folder, for tests."""
        self._allowed = [folder.resolve() for folder in allowed]
        self._trusted = trusted_models
        self._hub = Hub(is_offline=offline, endpoint=endpoint, cache=cache)

    def model(self, name: str, token: str | None = None) -> BaseModel:
        if _looks_like_path(name):
            folder = self._permitted(name, "/base_model")
            config = _config(folder)
            self._refuse_custom_code(config, name)
            return BaseModel(name=str(folder), parameters=_parameters(folder), shape=Shape.of(config))
        return self._hub.model(name, token, lambda config: self._refuse_custom_code(config, name))

    def dataset(self, path: str, split: str, token: str | None = None) -> DatasetFile:
        if _looks_like_path(path):
            file = self._permitted(path, "/path")
            return DatasetFile(path=file, name=file.name)
        return self._hub.dataset(path, split, token)

    def files(self, name: str, token: str) -> Sequence[ModelFile]:
        if _looks_like_path(name):
            return ()
        return self._hub.files(name, token, with_code=name.partition("@")[0] in self._trusted)

    def whose(self, token: str) -> str:
        return self._hub.whose(token)

    def _permitted(self, name: str, pointer: str) -> Path:
        path = Path(name).expanduser().resolve()
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            message = (
                f"{name} is a path on the server's disk and not in a folder its operator has allowed; "
                "upload the file, name a hub id, or have the operator add the folder to TRAINHOP_ALLOWED_FOLDERS"
            )
            raise InvalidError(message, [(pointer, message)])
        if not path.exists():
            raise InvalidError(f"{name} does not exist", [(pointer, f"{name} does not exist")])
        return path

    def _refuse_custom_code(self, config: dict[str, Any], name: str) -> None:
        if "auto_map" in config and name.partition("@")[0] not in self._trusted:
            message = (
                f"{name} wants to run its own code, which is never done unless the operator lists it in "
                "TRAINHOP_TRUSTED_MODELS"
            )
            raise InvalidError(message, [("/base_model", message)])


def _looks_like_path(name: str) -> bool:
    """A hub id is `org/name` or `name`, each of plain characters; everything else could touch the disk."""
    plain = name.partition("@")[0]
    return name.startswith((".", "/", "~")) or plain.count("/") > 1 or "\\" in name or ".." in name or ":" in name


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    if not config.is_file():
        message = f"{folder} holds no config.json: it is not a model folder"
        raise InvalidError(message, [("/base_model", message)])
    return json.loads(config.read_text())


def _parameters(folder: Path) -> int | None:
    """Parameters counted from the headers of the weight files, without reading the weights."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
    return total or None
