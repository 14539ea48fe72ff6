"""Where models and datasets that a job names are looked up: folders the operator has allowed, and the Hugging Face hub."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import InvalidError
from orchestrator.ports import BaseModel, DatasetFile
from worker.fit import Shape

HUB_TIMEOUT_S = 10.0
_DATA_SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")


class FolderAndHubCatalog:
    """Implements `ports.Catalog`. `allowed` are the only folders of this computer from which a job may name anything."""

    def __init__(self, allowed: Sequence[Path], trusted_models: frozenset[str], *, offline: bool) -> None:
        self._allowed = [folder.resolve() for folder in allowed]
        self._trusted, self._offline = trusted_models, offline

    def model(self, name: str) -> BaseModel:
        if _looks_like_path(name):
            folder = self._permitted(name, "/base_model")
            config = _config(folder)
            self._refuse_custom_code(config, name)
            return BaseModel(name=str(folder), parameters=_parameters(folder), shape=Shape.of(config))
        return self._hub_model(name)

    def dataset(self, path: str, split: str) -> DatasetFile:
        if _looks_like_path(path):
            file = self._permitted(path, "/path")
            return DatasetFile(path=file, name=file.name)
        return self._hub_dataset(path, split)

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

    def _hub_model(self, name: str) -> BaseModel:
        if self._offline:
            return BaseModel(name=name)
        from huggingface_hub import HfApi, hf_hub_download

        repo, _, revision = name.partition("@")
        try:
            info = HfApi().model_info(repo, revision=revision or None, timeout=HUB_TIMEOUT_S)
            config = json.loads(Path(hf_hub_download(repo, "config.json", revision=info.sha)).read_text())
            self._refuse_custom_code(config, name)
        except InvalidError:
            raise
        except Exception as error:
            raise _unreachable("/base_model", name, error) from error
        size = info.safetensors.total if info.safetensors else None
        return BaseModel(name=f"{repo}@{info.sha}", parameters=size, shape=Shape.of(config))

    def _hub_dataset(self, name: str, split: str) -> DatasetFile:
        from huggingface_hub import HfApi, hf_hub_download

        repo, _, revision = name.partition("@")
        try:
            if self._offline:
                raise ConnectionError("this server is set to stay offline")
            info = HfApi().dataset_info(repo, revision=revision or None, timeout=HUB_TIMEOUT_S)
            files = [s.rfilename for s in info.siblings or [] if s.rfilename.endswith(_DATA_SUFFIXES)]
            wanted = [f for f in files if split in Path(f).name] or (files if len(files) == 1 else [])
            if len(wanted) != 1:
                message = f"{name} has {len(wanted)} data files for split '{split}'; download it and upload one file"
                raise InvalidError(message, [("/path", message)])
            path = hf_hub_download(repo, wanted[0], revision=info.sha, repo_type="dataset")
        except InvalidError:
            raise
        except Exception as error:
            raise _unreachable("/path", name, error) from error
        return DatasetFile(path=Path(path), name=wanted[0])


def _unreachable(pointer: str, name: str, error: Exception) -> InvalidError:
    what = "upload the file instead" if pointer == "/path" else "name an allowed folder that holds it instead"
    message = f"{name} cannot be had from the hub ({type(error).__name__}); check the id and revision, or {what}"
    return InvalidError(message, [(pointer, message)])


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
