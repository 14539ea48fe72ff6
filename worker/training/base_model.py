"""The files of a base model: where they lie, what they hash to, how much memory they need."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.agent.limits import Limits
from worker.shared.checkpoint_file import sha256_file
from worker.training import hub_model
from worker.training.fetch_model import weights_of
from worker.training.interface import PermanentError, UnfitMachineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
_NF4_BYTES = 0.53
"""Half a byte per weight, and the doubly quantised scale of each block of 64."""
_HEADROOM = 1.15
"""What loading and the adapter take on top; activations depend on the micro-batch and are not counted."""
_MAX_HEADER_BYTES = 100_000_000


def resolve(name: str, limits: Limits | None = None, say: Callable[[str], None] = _log.warning) -> Path:
    """Folder of a local path or of a hub id `org/name[@revision]`, downloaded if it is not cached.

    `say` hears of every wait. Raises `PermanentError` naming the id and the remedy, and `UnfitMachineError` where another
    machine, or a later day, may do better: for a folder that only the server has, and while the hub is out of reach.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if folder.is_absolute():
        raise UnfitMachineError(f"the base model is the folder {name}, which is not on this machine")
    return hub_model.bring(name, limits or Limits(), say)


def check_code(name: str, directory: Path, trust_remote_code: bool) -> None:
    """Raise `PermanentError` if the model runs its own code and nobody allowed that."""
    if "auto_map" in _config(name, directory) and not trust_remote_code:
        raise PermanentError(
            f"base model {name} brings its own code, which is not allowed here; "
            "use a model that transformers knows, or have an administrator trust it"
        )


def is_quantised(name: str, directory: Path) -> bool:
    """Whether the folder holds 4-bit weights already."""
    return "quantization_config" in _config(name, directory)


def check_quantisation(name: str, directory: Path, wanted: bool) -> None:
    """Raise `PermanentError` if the weights are stored in a form that the job's adapter does not train on."""
    stored = _config(name, directory).get("quantization_config")
    if stored is None:
        return
    if not wanted:
        raise PermanentError(f"base model {name} is stored quantised; set adapter to qlora, or use the original")
    if not stored.get("load_in_4bit") or stored.get("bnb_4bit_quant_type") != "nf4":
        kind = stored.get("quant_method", "an unknown kind")
        raise PermanentError(f"base model {name} is quantised as {kind}; qlora trains on NF4 by bitsandbytes")


def load_bytes(name: str, directory: Path, quantised: bool, precision: str) -> int:
    """Memory the loaded base model takes, in bytes, estimated from the headers of its weight files."""
    total = 0.0
    for path in _weights(name, directory):
        for tensor, entry in _header(path).items():
            if tensor != "__metadata__":
                in_nf4 = quantised and len(entry["shape"]) > 1 and not re.search("embed|lm_head", tensor)
                each = 1.0 if entry["dtype"] in ("U8", "I8") else _NF4_BYTES if in_nf4 else _BYTES[precision]
                total += prod(entry["shape"]) * each
    return int(total * _HEADROOM)


def sha256(directory: Path) -> str:
    """Hash over the names and contents of the files that decide what the base model computes."""
    digest = hashlib.sha256()
    paths = sorted([*(weights_of(directory) or directory.glob("*.safetensors")), directory / "config.json"])
    # Hashing leaves Python's lock alone, so shards are read side by side.
    with ThreadPoolExecutor(4) as pool:
        for path, found in zip(paths, pool.map(_content_sha256, paths), strict=True):
            digest.update(f"{path.name} {found}\n".encode())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash over what decides how a text becomes token ids, the chat template included."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    core = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if isinstance(core, dict):
        # Padding and truncation are settings of the last call, not of the tokenizer.
        core = {key: value for key, value in core.items() if key not in ("padding", "truncation")}
    content = {"core": core, "special": tokenizer.special_tokens_map, "template": tokenizer.chat_template}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _content_sha256(path: Path) -> str:
    # The hub's cache links large files to blobs named by their sha256; reading 15 GB again would cost half a minute.
    blob = path.resolve().name
    return blob if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob) else sha256_file(path)


def _config(name: str, directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PermanentError(
            f"base model {name} has no readable config.json; give a folder or id of a model"
        ) from error


def _weights(name: str, directory: Path) -> list[Path]:
    if found := weights_of(directory) or sorted(directory.glob("*.safetensors")):
        return found
    raise PermanentError(f"base model {name} has no .safetensors weights; convert it, since other kinds are not loaded")


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size <= _MAX_HEADER_BYTES:
                return json.loads(file.read(size))
    except (OSError, ValueError) as error:
        raise PermanentError(f"the weight file {path.name} cannot be read; fetch the base model again") from error
    raise PermanentError(f"the weight file {path.name} is not in safetensors format; fetch the base model again")
