"""What is damaged or in a wrong order is refused, and what is refused is not published."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.export.damage import DAMAGES, _spans, is_refused, wrong_order
from worker.export import gguf_writer, run
from worker.export.checks import check_logits
from worker.export.errors import CheckError
from worker.export.gguf_reader import GgufModel, read_config, unpermuted
from worker.export.gguf_writer import permuted
from worker.export.probe import logits, probe_tokens


@pytest.mark.parametrize(("form", "kind"), [("merged", "fp16"), ("gguf", "q8_0"), ("gguf-adapter", None)])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_damaged_tensor_is_refused(pairing, family, form, kind, tmp_path) -> None:
    """Guard: without `check_tensors` a changed bit passed."""
    pair, out = pairing(family), tmp_path / "out"
    pair.export(out, form, kind)
    request, sources = pair.request(out, form, kind), pair.sources()
    path = next(iter([*out.glob("*.gguf"), *out.glob("model.safetensors")]))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    spans = _spans(path)
    # Every tensor with one of the damages, each of them in turn.
    for number, span in enumerate(spans):
        make = list(DAMAGES.values())[number % len(DAMAGES)]
        data = np.frombuffer(whole, dtype=np.uint8)[span.begin : span.begin + span.size]
        broken = whole[: span.begin] + make(data, random).tobytes() + whole[span.begin + span.size :]
        if broken == whole:
            continue
        path.write_bytes(broken)
        assert is_refused(request, sources, kind or "fp16", out), span.name
    path.write_bytes(whole)
    assert not is_refused(request, sources, kind or "fp16", out)


def test_q_and_k_in_a_wrong_order_are_refused(tmp_path) -> None:
    """In GGUF and merged files, for models and adapters."""
    assert all(figure.ok for figure in wrong_order(tmp_path / "order"))


def test_the_logits_alone_find_a_wrong_order(llama, tmp_path) -> None:
    """Also where reader and writer agree on the tensors, or one of them is wrong about the order.

    Guard: without `check_logits` this rested on the comparison of tensors alone.
    """
    sources, out = llama.sources(), tmp_path / "x.gguf"
    weights = sources.weights(with_adapter=True, onto="original")
    plain = replace(sources.architecture, is_permuted=False)
    vocabulary = run.read_vocabulary(sources.tokenizer)
    gguf_writer.write_model(out, weights, plain, sources.config, vocabulary, kind=1, name="x")
    model = GgufModel(out, sources.architecture)
    tokens = probe_tokens(sources.tokenizer, sources.config.vocab_size)
    found = logits(read_config(model.file, sources.architecture, sources.config), model, tokens)
    reference = logits(
        sources.config, sources.weights(with_adapter=False, onto="original"), tokens, sources.adapter.pairs
    )
    with pytest.raises(CheckError, match="logits differ"):
        check_logits(found, reference, "fp16")


def test_a_wrong_setting_changes_the_logits(pairing, tmp_path) -> None:
    """For example the base of the rotary embedding, which no tensor tells."""
    pair, out = pairing("qwen2"), tmp_path / "out"
    pair.export(out, "gguf", "fp16")
    path = out / "model-f16.gguf"
    key = b"qwen2.rope.freq_base"
    data = path.read_bytes()
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + np.float32(100.0).tobytes() + data[at + 4 :])
    assert is_refused(pair.request(out, "gguf", "fp16"), pair.sources(), "fp16", out)


def test_a_wrong_token_is_refused(llama, tmp_path) -> None:
    out = tmp_path / "out"
    llama.export(out, "gguf", "fp16")
    path = out / "model-f16.gguf"
    data = path.read_bytes()
    assert data.count(b"<|im_end|>") > 1
    path.write_bytes(data.replace(b"<|im_end|>", b"<|im_odd|>", 1))
    assert is_refused(llama.request(out, "gguf", "fp16"), llama.sources(), "fp16", out)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_reader_and_writer_order_rows_inversely(heads) -> None:
    rows = torch.arange(16 * 3, dtype=torch.float32).reshape(16, 3)
    assert torch.equal(unpermuted(permuted(rows, heads), heads), rows)
    first = permuted(rows, heads)[:4, 0] / 3
    half = 16 // heads // 2
    assert first.tolist() == [0, half, 1, half + 1]


def test_nothing_is_published_after_a_failed_check(llama, tmp_path, monkeypatch) -> None:
    """Guard: with the check after `move_into_place` the folder was there."""

    def fail(*_: object) -> None:
        raise CheckError("it differs")

    monkeypatch.setattr(run, "check_logits", fail)  # no export of whole inputs fails its check
    with pytest.raises(CheckError):
        llama.export(tmp_path / "out", "merged", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_computes_nothing_finite_is_refused() -> None:
    reference = torch.ones(1, 2, 3)
    with pytest.raises(CheckError, match="not finite"):
        check_logits(torch.full((1, 2, 3), float("nan")), reference, "fp16")
