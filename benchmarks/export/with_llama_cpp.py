"""llama.cpp with `--lora` and with merged files, against PEFT on the same tokens.

It is used through llama-cpp-python, which is not among this project's packages:
`CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --target FOLDER llama-cpp-python==0.3.36`, then `PYTHONPATH=FOLDER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export.models import FAMILIES, make_adapter, make_model
from benchmarks.report import Figure
from worker.export import gguf_types, gguf_writer
from worker.export.probe import probe_tokens
from worker.export.run import Form, Kind, Request, export
from worker.export.sources import open_sources
from worker.export.vocabulary import read_vocabulary
from worker.shared.passages import passages

FORMS: list[tuple[Form, Kind | None]] = [("gguf-adapter", None), ("gguf", "fp16"), ("gguf", "q8_0")]
TEXTS = 8
MAX_ERROR, MIN_SAME = 1e-2, 0.98
ACTIVATIONS = 2.0
"""For Q8_0 llama.cpp also rounds activations to 8 bits, which may cost as much again as rounding the weights does."""


def tiny(folder: Path) -> Iterator[Figure]:
    """Every architecture, tiny."""
    if (missing := _missing()) is not None:
        yield missing
        return
    for family in FAMILIES:
        base = make_model(folder / family / "base", family)
        adapter = make_adapter(folder / family / "adapter", base)
        yield from _compare(folder / family, base, adapter, FAMILIES[family])


def smollm2(folder: Path) -> Iterator[Figure]:
    """SmolLM2-135M-Instruct whole, as the demo has it."""
    if (missing := _missing()) is not None:
        yield missing
        return
    from orchestrator.entrypoints.demo.model import obtain

    base = obtain(folder / "cache")
    adapter = make_adapter(folder / "adapter", base, r=16, lora_alpha=32, std=0.01)
    yield Figure(name="llama.cpp used", value=metadata.version("llama-cpp-python"), bar="said", ok=True)
    yield from _compare(folder, base, adapter, "SmolLM2")


def _missing() -> Figure | None:
    if find_spec("llama_cpp") is not None:
        return None
    return Figure(name="llama.cpp", value="llama-cpp-python cannot be imported", bar="it is there", ok=False)


def _compare(folder: Path, base: Path, adapter: Path, name: str) -> Iterator[Figure]:
    sources = open_sources(adapter, str(base), _quiet)
    tokens = probe_tokens(sources.tokenizer, sources.config.vocab_size).tolist()
    expected = _peft(base, adapter, tokens)
    base_file = folder / "base.gguf"
    gguf_writer.write_model(
        base_file,
        sources.weights(with_adapter=False, onto="original"),
        sources.architecture,
        sources.config,
        read_vocabulary(sources.tokenizer),
        kind=gguf_types.F16,
        name="base",
    )
    for form, kind in FORMS:
        out = folder / f"{form}-{kind}"
        made = export(Request(adapter=adapter, out=out, form=form, kind=kind, base=str(base)), _quiet)
        file = next(out.glob("*.gguf"))
        model = _load(base_file, file) if form == "gguf-adapter" else _load(file, None)
        what = "--lora" if form == "gguf-adapter" else f"merged {kind}"
        limit = ACTIVATIONS * made["check"]["error"] if kind == "q8_0" else MAX_ERROR
        yield from _figures(f"{name}, llama.cpp {what}", _logits(model, tokens), expected, round(limit, 4))
        if kind == "fp16":
            yield _same_tokens(name, model, sources.tokenizer)
        model.close()


def _figures(name: str, found: np.ndarray, expected: np.ndarray, limit: float) -> Iterator[Figure]:
    a, b = (values - values.mean(-1, keepdims=True) for values in (found, expected))
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    yield Figure(name=f"{name}: logits", value=round(error, 6), bar=f"<= {limit} relative", ok=error <= limit)
    same = float((a.argmax(-1) == b.argmax(-1)).mean())
    if limit == MAX_ERROR:
        yield Figure(name=f"{name}: argmax", value=round(same, 4), bar=f">= {MIN_SAME}", ok=same >= MIN_SAME)


def _same_tokens(name: str, model: Any, tokenizer: Path) -> Figure:
    """Whether llama.cpp cuts texts into the tokens of the tokenizer."""
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [passage.text for passage in passages()][:TEXTS]
    texts += [
        "  two spaces, 12345 and\nlines\n\n",
        "Grüße, 你好 🙂",
        "don't  we'll I'm",
        "<|im_start|>user\nHi<|im_end|>\n",
    ]
    adds_bos = model.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    same = sum(model.tokenize(text.encode(), add_bos=adds_bos, special=True) == ours.encode(text).ids for text in texts)
    return Figure(name=f"{name}, tokens of texts equal", value=same, bar=f"{len(texts)}", ok=same == len(texts))


def _peft(base: Path, adapter: Path, tokens: list[list[int]]) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor(tokens)).logits.float().numpy()


def _load(model: Path, lora: Path | None) -> Any:
    return import_module("llama_cpp").Llama(
        str(model),
        lora_path=None if lora is None else str(lora),
        n_ctx=256,
        logits_all=True,
        verbose=False,
        n_threads=2,
    )


def _logits(model: Any, tokens: list[list[int]]) -> np.ndarray:
    found: list[np.ndarray] = []
    for row in tokens:
        model.reset()
        model.eval(row)
        found.append(np.array(model.scores[: len(row)]))
    return np.stack(found)


def _quiet(_: str) -> None:
    pass
