"""Exports the adapter as a plain PEFT folder in one zip. The same adapter gives the same bytes."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.shared.checkpoint_file import sha256_file
from worker.shared.model_card import model_card

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Recipe

ADAPTER_FILE = "adapter_model.safetensors"
GENERATION = "generation_config.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time in a zip file. The real time would change the archive's hash."""


def export_adapter(
    model: Any,
    tokenizer: Any,
    spec: JobSpec,
    recipe: Recipe,
    work_dir: Path,
    ends: Sequence[int] = (),
    ending: str = "",
) -> tuple[Path, str]:
    """Write `work_dir/adapter.zip`. Returns its path and the sha256 of the adapter's weights in it.

    `ends` are the tokens at which an answer ends. `ending` says for the model card how the job ended, if not with its
    last step. Raises `OSError` on a full disk.
    """
    folder = work_dir / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_weights(model, folder / ADAPTER_FILE)
    config = json.dumps(_config(model, spec), indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    if ends:
        _write_generation(tokenizer, folder / GENERATION, ends)
    (folder / "README.md").write_text(model_card(spec, recipe, ending=ending), encoding="utf-8")
    archive = work_dir / "adapter.zip"
    _pack(folder, archive)
    return archive, sha256_file(folder / ADAPTER_FILE)


def _write_weights(model: Any, path: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, path, metadata={"format": "pt"})


def _write_generation(tokenizer: Any, path: Path, ends: Sequence[int]) -> None:
    """The base model's settings of generation, which also stop at the end that the rows have taught."""
    settings: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((Path(tokenizer.name_or_path) / GENERATION).read_text(encoding="utf-8"))
        settings = found if isinstance(found, dict) else {}
    settings["eos_token_id"] = list(ends)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(model: Any, spec: JobSpec) -> dict[str, Any]:
    name, _, revision = spec.base_model.partition("@")
    config = {key: _plain(value) for key, value in model.peft_config["default"].to_dict().items()}
    return config | {"base_model_name_or_path": name, "revision": revision or None, "inference_mode": True}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    # The order of a set differs between processes.
    return sorted(value) if isinstance(value, set | frozenset) else value


def _pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
