"""One export from its request to its published folder: write under a hidden name, check, publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from worker.export import gguf_types, gguf_writer
from worker.export.checks import Agreement, agreement, check_logits, check_tensors, distance
from worker.export.errors import CheckError, ExportError
from worker.export.gguf_reader import GgufModel, read_config, read_pairs
from worker.export.gguf_settings import rope_factors
from worker.export.instructions import Instructions, instructions
from worker.export.merge import Merged, Onto, has_bitsandbytes
from worker.export.probe import logits, model_config, probe_tokens
from worker.export.publishing import published
from worker.export.sources import TOKENIZER_FILES, Sources, open_sources
from worker.export.tensor_files import TensorFolder, write_shards
from worker.export.vocabulary import read_vocabulary
from worker.shared.checkpoint_file import sha256_file
from worker.shared.files import write_atomically
from worker.shared.model_support import present_weights

Form = Literal["merged", "gguf", "gguf-adapter"]
Kind = Literal["fp16", "bf16", "q8_0"]
REPORT = "trainhop-export.json"
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_GGUF = {"fp16": gguf_types.F16, "bf16": gguf_types.BF16, "q8_0": gguf_types.Q8_0}
_ADAPTER_FILE = "adapter.gguf"
_KV_BYTES = 64 << 20
"""Room for a vocabulary and small files."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """`kind` None: fp16 where values and activations fit, else bf16. `base` None: what the adapter names.

    `base_folder` is where the base model is already, if `base` is only its name.
    `adapter_name` is where the adapter will be, if not in `adapter`, and `out_name` where the export will be, if not in
    `out`. `spare_bytes` stay free on the disk.
    """

    adapter: Path
    out: Path
    form: Form
    kind: Kind | None = None
    base: str | None = None
    base_folder: str | None = None
    onto: Onto = "original"
    adapter_name: str | None = None
    out_name: str | None = None
    spare_bytes: int = 64 << 20

    @property
    def place(self) -> Path:
        """The folder in commands."""
        return Path(self.out_name) if self.out_name else self.out


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the original base is from what a job with `adapter: qlora` trained on, relative to its size.

    `weights`: of the weights that NF4 rounds. `logits`: of the probe, both with the adapter.
    """

    weights: float
    logits: float


class _DoesNotFit(ExportError):
    """A value is beyond the range of fp16."""


def export(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Make, check and publish an export. Returns the report that is also in its folder.

    `say` is called with what is done now. Raises `ExportError`, after which nothing is published.
    """
    sources = open_sources(request.adapter, request.base, say, request.base_folder)
    kind = _kind(request, sources)
    _check_request(request, sources)
    try:
        return _export(request, sources, kind, say)
    except _DoesNotFit as error:
        if request.kind is not None:
            raise
        say(f"{error}; starting again with bf16")
        return _export(request, sources, "bf16", say)


def _export(request: Request, sources: Sources, kind: Kind, say: Callable[[str], None]) -> dict[str, Any]:
    with published(request.out, _needed(request, sources, kind) + request.spare_bytes) as folder:
        say(f"writing {request.form} in {'fp32' if request.form == 'gguf-adapter' else kind}")
        _write(request, sources, kind, folder)
        say("checking every tensor, and the logits of a probe")
        result, effect = check(request, sources, kind, folder)
        difference = _difference(sources, say)
        written = instructions(request.form, folder, request.place, sources, kind, request.adapter_name)
        report = _report(request, sources, kind, folder, (result, effect, difference), written)
        write_atomically(folder / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def check(request: Request, sources: Sources, kind: Kind, folder: Path) -> tuple[Agreement, float]:
    """Compare written files with base and adapter. Returns the agreement, and how far the adapter moves the logits.

    Raises `CheckError`.
    """
    base = sources.weights(with_adapter=False, onto=request.onto)
    tokens = probe_tokens(sources.tokenizer, sources.config.vocab_size)
    if request.form == "gguf-adapter":
        found = _adapter_logits(sources, base, tokens, folder / _ADAPTER_FILE)
        kind_of_check = "fp32"
    else:
        found = _model_logits(request, sources, kind, folder, tokens)
        kind_of_check = kind
    reference = logits(sources.config, base, tokens, sources.adapter.pairs)
    result = check_logits(found, reference, kind_of_check)
    return result, agreement(logits(sources.config, base, tokens), reference, 0.0).error


def _write(request: Request, sources: Sources, kind: Kind, folder: Path) -> None:
    weights = sources.weights(with_adapter=True, onto=request.onto)
    if request.form == "merged":
        _write_merged(sources, weights, kind, folder)
    elif request.form == "gguf":
        vocabulary = read_vocabulary(sources.tokenizer)
        gguf_writer.write_model(
            folder / _model_file(kind),
            weights,
            sources.architecture,
            sources.config,
            vocabulary,
            kind=_GGUF[kind],
            name=sources.name,
        )
    else:
        gguf_writer.write_adapter(
            folder / _ADAPTER_FILE, sources.adapter, sources.architecture, sources.config, name=sources.name
        )


def _write_merged(sources: Sources, weights: Merged, kind: Kind, folder: Path) -> None:
    dtype = _DTYPES[kind]
    write_shards(folder, weights, dtype, encode=lambda name, block: _rounded(name, block, dtype))
    for name in TOKENIZER_FILES:
        if (sources.tokenizer / name).is_file():
            shutil.copyfile(sources.tokenizer / name, folder / name)
    # That of the adapter also stops at the end that its rows have taught.
    settings = (place / "generation_config.json" for place in (sources.tokenizer, sources.base))
    if (generation := next((path for path in settings if path.is_file()), None)) is not None:
        shutil.copyfile(generation, folder / generation.name)
    key = "dtype" if "dtype" in sources.raw_config else "torch_dtype"
    config = sources.raw_config | {key: str(dtype).removeprefix("torch.")}
    # Last, because without it the folder is not a model.
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _rounded(name: str, block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    found = block.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(found).all():
        raise _DoesNotFit(f"{name} has values that do not fit in fp16")
    return found


def _model_logits(request: Request, sources: Sources, kind: Kind, folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    expected = sources.weights(with_adapter=True, onto=request.onto)
    if request.form == "merged":
        dtype, written = _DTYPES[kind], TensorFolder(folder)
        check_tensors(written, expected, lambda _, block: block.to(dtype).float())
        return logits(model_config(folder), written, tokens)
    model = GgufModel(folder / _model_file(kind), sources.architecture)
    _check_vocabulary(model, sources)
    _check_rope(model, sources)
    check_tensors(model, expected, lambda name, block: _through_gguf(model, sources, name, block))
    return logits(read_config(model.file, sources.architecture, sources.config), model, tokens)


def _adapter_logits(sources: Sources, base: Merged, tokens: torch.Tensor, path: Path) -> torch.Tensor:
    pairs = read_pairs(path, sources.architecture, sources.config)
    _, expected = gguf_writer.with_one_alpha(sources.adapter)
    for module in expected.keys() | pairs.keys():
        ours, theirs = sources.adapter.pairs.get(module), pairs.get(module)
        is_whole = ours is not None and theirs is not None and torch.equal(ours.a, theirs.a)
        if not is_whole or not torch.equal(expected[module], pairs[module].b):
            raise CheckError(f"{module} is missing or has other values than it should have; nothing was published")
    return logits(sources.config, base, tokens, pairs)


def _through_gguf(model: GgufModel, sources: Sources, name: str, block: torch.Tensor) -> torch.Tensor:
    offset = sources.architecture.norm_offset if name.endswith("norm.weight") else 0.0
    kind = gguf_types.stored_type(model.kind(name), block.shape)
    if kind != model.kind(name):
        raise CheckError(f"{name} has another type than it should have; nothing was published")
    return gguf_types.decode(gguf_types.encode(block + offset, kind), kind, block.shape) - offset


def _check_vocabulary(model: GgufModel, sources: Sources) -> None:
    """Raise `CheckError` if tokens in the file are not those of the tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(sources.tokenizer / "tokenizer.json"))
    tokens = model.file.settings.get("tokenizer.ggml.tokens") or []
    pairs = tokenizer.get_vocab().items()
    wrong = next((number for text, number in pairs if tokens[number : number + 1] != [text]), None)
    if wrong is not None:
        raise CheckError(f"token {wrong} in the GGUF file is not that of the tokenizer; nothing was published")


def _check_rope(model: GgufModel, sources: Sources) -> None:
    """Raise `CheckError` if the factors of the rotary embedding are not those of the config."""
    expected = rope_factors(sources.config)
    found = {name: model.file.rows(name, 0, model.file.tensors[name].shape[0]) for name in model.extra()}
    if found.keys() != expected.keys() or any(not torch.equal(found[name], expected[name]) for name in found):
        raise CheckError("the factors of the rotary embedding differ from the model's; nothing was published")


def _kind(request: Request, sources: Sources) -> Kind:
    if request.kind is not None:
        return request.kind
    return "bf16" if request.form == "merged" and sources.architecture.overflows else "fp16"


def _check_request(request: Request, sources: Sources) -> None:
    if request.form == "merged" and request.kind == "q8_0":
        raise ExportError("a merged model is in fp16 or bf16; q8_0 is a type of GGUF files, made with --format gguf")
    if request.form == "gguf-adapter" and (request.kind is not None or request.onto != "original"):
        raise ExportError("a GGUF adapter is in fp32 and has no base model in it; leave --type and --onto out")
    if request.onto == "nf4" and not sources.adapter.is_qlora:
        raise ExportError("the adapter does not say that it was trained with qlora; merge it into the original")


def _needed(request: Request, sources: Sources, kind: Kind) -> int:
    if request.form == "gguf-adapter":
        return sum(4 * (pair.a.numel() + pair.b.numel()) for pair in sources.adapter.pairs.values())
    weights = sources.weights(with_adapter=True, onto="original")
    shapes = [weights.shape(name) for name in weights.names()]
    if request.form == "merged":
        return _KV_BYTES + sum(2 * prod(shape) for shape in shapes)
    return _KV_BYTES + sum(gguf_types.bytes_of(gguf_types.stored_type(_GGUF[kind], shape), shape) for shape in shapes)


def _difference(sources: Sources, say: Callable[[str], None]) -> Difference | None:
    """For an adapter that was trained on NF4, if its form can be computed here."""
    if not sources.adapter.is_qlora or not has_bitsandbytes():
        return None
    say("comparing the original base model with its NF4 form, on which the adapter was trained")
    original = sources.weights(with_adapter=False, onto="original")
    rounded = sources.weights(with_adapter=False, onto="nf4")
    pairs = [
        distance(rounded, original, name)
        for name in original.names()
        if name.startswith("model.layers.") and name.endswith("_proj.weight")
    ]
    weights = (sum(pair[0] for pair in pairs) / max(sum(pair[1] for pair in pairs), 1e-30)) ** 0.5
    tokens = probe_tokens(sources.tokenizer, sources.config.vocab_size)
    trained = logits(sources.config, rounded, tokens, sources.adapter.pairs)
    found = logits(sources.config, original, tokens, sources.adapter.pairs)
    return Difference(weights=weights, logits=agreement(found, trained, 0.0).error)


def _missing_notes(sources: Sources) -> list[str]:
    if not sources.adapter.is_qlora or has_bitsandbytes():
        return []
    return ["how far the original base model is from its NF4 form was not measured, because bitsandbytes is missing"]


def _model_file(kind: Kind) -> str:
    return f"model-{'f16' if kind == 'fp16' else kind}.gguf"


def _report(
    request: Request,
    sources: Sources,
    kind: Kind,
    folder: Path,
    found: tuple[Agreement, float, Difference | None],
    written: Instructions,
) -> dict[str, Any]:
    result, effect, difference = found
    weights = present_weights(folder) or sorted(folder.glob("*.gguf"))
    files = [*weights, *sorted(path for path in folder.iterdir() if path not in weights)]
    return {
        "format": request.form,
        "type": "fp32" if request.form == "gguf-adapter" else kind,
        "path": str(request.place),
        "architecture": sources.architecture.name,
        "base": sources.base_name,
        "onto": None if request.form == "gguf-adapter" else request.onto,
        "trained_on": "nf4" if sources.adapter.is_qlora else "original",
        "nf4_difference": None if difference is None else asdict(difference),
        "check": asdict(result) | {"adapter_effect": effect},
        "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files],
        "notes": [*written.notes, *_missing_notes(sources)],
        "commands": dict(written.commands),
    }
