"""The files of a base model: their folder, their hash, and the memory that they need."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.agent.limits import Limits
from worker.shared import causes
from worker.shared.checkpoint_file import sha256_file
from worker.shared.experts import FUSED
from worker.shared.files import expanded
from worker.shared.model_support import adapter_fault, attention_of, model_type, needs_own_code, weights_of
from worker.training import hub_model
from worker.training.interface import PermanentError, UnfitMachineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from worker.shared.job_spec import JobSpec

_log = logging.getLogger(__name__)
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
_NF4_BYTES = 0.53
"""Bytes per weight: a 4-bit code and the doubly quantised scale of each block of 64."""
_HEADROOM = 1.15
"""Factor for loading and the adapter. Activations depend on the micro-batch and are not included."""
_AGAIN = "download the base model again"
_MAX_HEADER_BYTES = 100_000_000


def resolve(name: str, limits: Limits | None = None, say: Callable[[str], None] = _log.warning) -> Path:
    """Folder of a local path or of a hub id `org/name[@revision]`, downloaded if it is not cached.

    `say` is called with the reason for each wait. Raises `PermanentError` with the id and the remedy. Raises
    `UnfitMachineError` if another machine or a later attempt may succeed: for a folder that only the server has, and
    while the hub is unreachable.
    """
    if (folder := expanded(name)).is_dir():
        return folder
    if folder.is_absolute():
        raise UnfitMachineError(
            f"the base model is the folder {name}, which is not on this machine; name a model by its id on the hub",
            causes.MODEL,
        )
    return hub_model.bring(name, limits or Limits(), say)


@contextlib.contextmanager
def called_judge_model() -> Iterator[None]:
    """Call the model in the block's errors what it is: the judge model of an evaluation."""
    try:
        yield
    except (PermanentError, UnfitMachineError) as error:
        error.args = (str(error).replace("base model", "judge model"),)
        raise


def check_code(name: str, directory: Path, trust_remote_code: bool) -> None:
    """Raise `PermanentError` if the model only runs with its own code and that is not allowed."""
    if needs_own_code(_config(name, directory)) and not trust_remote_code:
        raise PermanentError(
            f"base model {name} needs its own code, which is not allowed here; "
            "use a model that transformers supports, or ask an administrator to allow it"
        )


def is_quantised(name: str, directory: Path) -> bool:
    """Whether the stored weights are quantised."""
    return "quantization_config" in _config(name, directory)


def check_quantisation(name: str, directory: Path, wanted: bool) -> None:
    """Raise `PermanentError` if the job's adapter cannot be trained on weights stored in this form."""
    stored = _config(name, directory).get("quantization_config")
    if stored is None:
        return
    if not wanted:
        raise PermanentError(f"base model {name} is stored quantised; set adapter to qlora, or use the original")
    if not stored.get("load_in_4bit") or stored.get("bnb_4bit_quant_type") != "nf4":
        kind = stored.get("quant_method", "an unknown kind")
        raise PermanentError(
            f"base model {name} is quantised as {kind}; use a model that is not quantised or in NF4 of bitsandbytes"
        )


def check_adapter(spec: JobSpec, directory: Path) -> None:
    """Raise `PermanentError` if this kind of model cannot be trained with the job's adapter."""
    if fault := adapter_fault(spec, model_type(_config(spec.base_model, directory))):
        raise PermanentError(f"base model {spec.base_model}: {fault.words}")


def attention(spec: JobSpec, directory: Path) -> str | None:
    """The implementation of attention for the model. None for the library's choice, as in jobs of earlier versions."""
    return attention_of(_config(spec.base_model, directory)) if spec.numerics is not None else None


def load_bytes(name: str, directory: Path, quantised: bool, precision: str) -> int:
    """Estimated bytes of the loaded base model, from the headers of its weight files."""
    total, kept = 0.0, "embed|lm_head"
    if quantised and model_type(_config(name, directory)) in FUSED:  # experts become one tensor, which stays in 16 bits
        kept += r"|\.experts\."
    for path in _weights(name, directory):
        for tensor, entry in _header(path).items():
            if tensor != "__metadata__":
                in_nf4 = quantised and len(entry["shape"]) > 1 and not re.search(kept, tensor)
                each = 1.0 if entry["dtype"] in ("U8", "I8") else _NF4_BYTES if in_nf4 else _BYTES[precision]
                total += prod(entry["shape"]) * each
    return int(total * _HEADROOM)


def sha256(directory: Path) -> str:
    """Hash over the names and contents of the files that determine the base model's output."""
    digest = hashlib.sha256()
    paths = sorted([*(weights_of(directory) or directory.glob("*.safetensors")), directory / "config.json"])
    # Hashing releases the GIL, so shards are read in parallel.
    with ThreadPoolExecutor(4) as pool:
        for path, found in zip(paths, pool.map(_content_sha256, paths), strict=True):
            digest.update(f"{path.name} {found}\n".encode())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash over everything that determines the token ids of a text, including the chat template."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    core = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if isinstance(core, dict):
        # Padding and truncation are settings of the last call, not of the tokenizer.
        core = {key: value for key, value in core.items() if key not in ("padding", "truncation")}
    content = {"core": core, "special": tokenizer.special_tokens_map, "template": tokenizer.chat_template}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _content_sha256(path: Path) -> str:
    # The hub's cache links large files to blobs named by their sha256. Hashing 15 GB would cost half a minute.
    blob = path.resolve().name
    return blob if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob) else sha256_file(path)


def _config(name: str, directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PermanentError(f"base model {name} has no readable config.json; use a model's folder or id") from error


def _weights(name: str, directory: Path) -> list[Path]:
    if found := weights_of(directory) or sorted(directory.glob("*.safetensors")):
        return found
    raise PermanentError(f"base model {name} has no .safetensors weights; convert it to safetensors")


def _header(path: Path) -> dict[str, Any]:
    """The entries of the tensors, all of whose bytes are in the file."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(file.read(size))
            ends = [int(entry["data_offsets"][1]) for tensor, entry in header.items() if tensor != "__metadata__"]
            left = path.stat().st_size - 8 - size
    except OSError as error:
        raise PermanentError(f"the weight file {path.name} cannot be read; {_AGAIN}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PermanentError(f"the weight file {path.name} is not in safetensors format; {_AGAIN}") from error
    if max(ends, default=0) > left:
        raise PermanentError(f"the weight file {path.name} is cut off; {_AGAIN}")
    return header
