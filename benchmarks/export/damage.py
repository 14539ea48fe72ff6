"""Damaged exports: every tensor of every format in several ways, and q and k in a wrong order. All must be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.export.models import FAMILIES, make_adapter, make_model
from benchmarks.report import Figure
from worker.export import gguf_types, gguf_writer
from worker.export.errors import CheckError
from worker.export.gguf_reader import GgufFile
from worker.export.run import Form, Kind, Request, check, export
from worker.export.sources import Sources, open_sources
from worker.export.vocabulary import read_vocabulary

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Span:
    """Where a tensor's bytes are in a file."""

    name: str
    begin: int
    size: int
    rows: int


def _zeroed(data: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.zeros_like(data)


def _bit(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    found = data.copy()
    found[random.integers(found.size)] ^= 1 << int(random.integers(8))
    return found


def _shuffled(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.permutation(data)


def _shifted(data: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.roll(data, data.size // 2 + 2)


DAMAGES: dict[str, Damage] = {"zeroed": _zeroed, "one bit": _bit, "shuffled": _shuffled, "shifted": _shifted}


FORMS: list[tuple[Form, Kind]] = [("merged", "fp16"), ("gguf", "fp16"), ("gguf", "q8_0"), ("gguf-adapter", "fp16")]


def damage(folder: Path) -> Iterator[Figure]:
    """Each architecture and format."""
    for family in FAMILIES:
        base = make_model(folder / family / "base", family)
        adapter = make_adapter(folder / family / "adapter", base)
        for form, kind in FORMS:
            yield _damaged(folder / family / f"{form}-{kind}", base, adapter, form, kind)
    yield from wrong_order(folder / "order")


def _damaged(out: Path, base: Path, adapter: Path, form: Form, kind: Kind) -> Figure:
    is_adapter = form == "gguf-adapter"
    request = Request(adapter=adapter, out=out, form=form, kind=None if is_adapter else kind, base=str(base))
    export(request, lambda _: None)
    sources = open_sources(adapter, str(base), lambda _: None)
    check(request, sources, kind, out)  # whole files pass
    random, tried, refused = np.random.default_rng(0), 0, 0
    path = next([*out.glob("*.gguf"), *out.glob("*.safetensors")].__iter__())
    for span in _spans(path):
        for make in DAMAGES.values():
            with path.open("r+b") as file:
                file.seek(span.begin)
                whole = np.frombuffer(file.read(span.size), dtype=np.uint8)
                broken = make(whole, random)
                if np.array_equal(broken, whole):
                    continue
                file.seek(span.begin)
                file.write(broken.tobytes())
            tried += 1
            refused += is_refused(request, sources, kind, out)
            with path.open("r+b") as file:
                file.seek(span.begin)
                file.write(whole.tobytes())
    return Figure(
        name=f"{sources.architecture.name}, {form} {'' if is_adapter else kind}: damaged tensors refused",
        value=refused,
        bar=f"{tried}",
        ok=refused == tried > 0,
    )


def wrong_order(folder: Path) -> Iterator[Figure]:
    """GGUF files of Llama and Mistral whose q and k are not in llama.cpp's order, or transposed."""
    for family in ("llama", "mistral"):
        # As many heads for k as for q, so that k is square as well.
        base = make_model(folder / family / "base", family, num_key_value_heads=4)
        adapter = make_adapter(folder / family / "adapter", base)
        sources = open_sources(adapter, str(base), lambda _: None)
        tried = refused = 0
        for form in ("gguf", "gguf-adapter"):
            out = folder / family / f"unpermuted-{form}"
            out.mkdir()
            _unpermuted(out, sources, form)
            tried += 1
            refused += is_refused(_request(adapter, base, out, form), sources, "fp16", out)
        for form in ("gguf", "merged"):
            for name in ("q", "k"):
                out = folder / family / f"transposed-{form}-{name}"
                request = _request(adapter, base, out, form)
                export(request, lambda _: None)
                _transpose(out, name)
                tried += 1
                refused += is_refused(request, sources, "fp16", out)
        name = f"{sources.architecture.name}: unpermuted or transposed q and k refused"
        yield Figure(name=name, value=refused, bar=f"{tried}", ok=refused == tried)
    shutil.rmtree(folder)


def is_refused(request: Request, sources: Sources, kind: Kind, out: Path) -> bool:
    """Whether the check finds that the files are not what they should be."""
    try:
        check(request, sources, kind, out)
    except CheckError:
        return True
    return False


def _request(adapter: Path, base: Path, out: Path, form: Form) -> Request:
    kind = None if form == "gguf-adapter" else "fp16"
    return Request(adapter=adapter, out=out, form=form, kind=kind, base=str(base))


def _unpermuted(out: Path, sources: Sources, form: str) -> None:
    plain = replace(sources.architecture, is_permuted=False)
    if form == "gguf-adapter":
        gguf_writer.write_adapter(out / "adapter.gguf", sources.adapter, plain, sources.config, name="x")
        return
    weights = sources.weights(with_adapter=True, onto="original")
    vocabulary = read_vocabulary(sources.tokenizer)
    gguf_writer.write_model(
        out / "model-f16.gguf", weights, plain, sources.config, vocabulary, kind=gguf_types.F16, name="x"
    )


def _transpose(out: Path, which: str) -> None:
    path = next([*out.glob("*.gguf"), *out.glob("*.safetensors")].__iter__())
    wanted = (f"attn_{which}.weight", f"self_attn.{which}_proj.weight")
    span = next(span for span in _spans(path) if span.name.endswith(wanted))
    with path.open("r+b") as file:
        file.seek(span.begin)
        matrix = np.frombuffer(file.read(span.size), dtype=np.float16).reshape(span.rows, -1)
        file.seek(span.begin)
        file.write(np.ascontiguousarray(matrix.T).tobytes())


def _spans(path: Path) -> list[Span]:
    if path.suffix == ".gguf":
        file = GgufFile(path)
        return [
            Span(name, file.begin + entry.offset, gguf_types.bytes_of(entry.kind, entry.shape), entry.shape[0])
            for name, entry in file.tensors.items()
        ]
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return [
        Span(name, 8 + size + e["data_offsets"][0], e["data_offsets"][1] - e["data_offsets"][0], e["shape"][0])
        for name, e in header.items()
    ]
