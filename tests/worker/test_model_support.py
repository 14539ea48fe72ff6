"""What the config of a base model decides: its own code, its adapter, its attention, its weight files."""

import json
import logging
from typing import Any

import pytest
import torch

from benchmarks.tiny_model import byte_tokenizer
from worker.agent.hardware import probe
from worker.shared import model_support
from worker.shared.job_spec import JobSpec
from worker.shared.model_support import weights_of
from worker.training import base_model, library_warnings
from worker.training.backends.hf import HfBackend
from worker.training.interface import PermanentError


def spec(**changes):
    plain = {"base_model": "m", "datasets": ({"path": "d"},), "max_steps": 1}
    return JobSpec(**(plain | changes))


def test_the_known_types_are_those_of_the_library():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) == model_support.KNOWN


def test_the_renamed_types_are_those_of_the_library():
    """Guard: modules that only the loaded model has would be refused as unknown."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    renamed = {kind for kind in model_support.KNOWN if get_checkpoint_conversion_mapping(kind)}
    assert renamed == model_support.RENAMED


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        ({"model_type": "phi3", "auto_map": {"AutoConfig": "x.Y"}}, False),
        ({"model_type": "phi3"}, False),
        ({"model_type": "its_own", "auto_map": {}}, True),
        ({"model_type": ["phi3"], "auto_map": {}}, True),
        ({"auto_map": {}}, True),
    ],
)
def test_code_of_its_own_is_needed_only_by_unknown_models(config, needs):
    assert model_support.needs_own_code(config) is needs


@pytest.mark.parametrize(
    ("kind", "changes", "key", "words"),
    [
        ("mamba", {}, "lora_target_modules", r"cannot take an adapter on all-linear; .* \[in_proj, x_proj\]"),
        ("mamba2", {"lora_target_modules": ("m.out_proj",)}, "lora_target_modules", "on out_proj or conv1d"),
        ("mamba", {"lora_target_modules": ("in_proj",), "adapter": "qlora"}, "adapter", "set adapter to lora"),
        ("jamba", {"adapter": "qlora"}, "adapter", "does not run with 4-bit weights"),
    ],
)
def test_an_adapter_that_cannot_be_trained_is_refused(kind, changes, key, words, tmp_path):
    """Guard: without the look at the config a machine was started, and its session crashed, four times."""
    fault = model_support.adapter_fault(spec(**changes), kind)
    assert fault is not None
    assert fault.key == key
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(PermanentError, match=words):
        base_model.check_adapter(spec(**changes), tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"adapter": "qlora"}),
        ("mamba", {"lora_target_modules": ("in_proj", "x_proj")}),
        ("", {}),
        ("opt", {"lora_target_modules": ("out_proj",)}),
    ],
)
def test_an_adapter_that_can_be_trained_is_not_refused(kind, changes):
    assert model_support.adapter_fault(spec(**changes), kind) is None


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "eager"),
        ({"model_type": "gemma2"}, "eager"),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, None),
        ({"model_type": "wrapped", "text_config": {"model_type": "gemma2"}}, "eager"),
        ({"model_type": "llama"}, None),
    ],
)
def test_attention_follows_the_config(config, attention):
    assert model_support.attention_of(config) == attention


def test_capped_scores_are_capped_in_new_jobs(tmp_path):
    """The logits are those of the model's own attention. Guard: PyTorch's attention leaves the cap out. An old job
    keeps the attention that it began with."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    widths: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Gemma2Config(
        vocab_size=259, head_dim=8, num_key_value_heads=2, attn_logit_softcapping=0.01, initializer_range=2.0, **widths
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    logits = {}
    for numerics in (2, None):
        model = HfBackend().base(spec(numerics=numerics), tmp_path, probe(), "fp32", trust=False)
        logits[numerics] = model.eval()(input_ids=ids).logits
    wanted = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()(input_ids=ids).logits
    assert torch.equal(logits[2], wanted)
    assert not torch.allclose(logits[None], wanted, atol=1e-3)


def test_only_expected_warnings_are_hidden():
    """Guard: with the library silenced as a whole, its advice against an attention that drops the cap went unseen."""
    import transformers

    library_warnings.hide_expected_warnings()
    library_warnings.hide_expected_warnings()
    handler = logging.getLogger("transformers").handlers[0]

    def is_printed(text, level=logging.WARNING):
        return bool(handler.filter(logging.LogRecord("transformers", level, "x.py", 1, text, None, None)))

    assert transformers.logging.get_verbosity() == logging.WARNING
    assert len(handler.filters) == 1
    assert is_printed("It is strongly recommended to train Gemma2 models with the `eager` attention implementation")
    assert not is_printed("Setting `pad_token_id` to `eos_token_id`:2 for open-end generation.")
    assert is_printed("Setting `pad_token_id` to `eos_token_id`:2 failed", logging.ERROR)


def _weights(header: bytes, rest: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_weights(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(7)), "cut off"),
        (_weights(b'{"a": {"dtype": "F32", "shape": [2]}}', bytes(8)), "not in safetensors format"),
        (_weights(b"[]", b""), "not in safetensors format"),
        (_weights(b"{", b""), "not in safetensors format"),
        (_weights(b"[" * 100_000, b""), "not in safetensors format"),
        (bytes([255] * 16), "not in safetensors format"),
        (b"", "not in safetensors format"),
    ],
)
def test_a_damaged_weight_file_is_named(content, words, tmp_path):
    """Guard: without the look at the size a file that was cut off cost four sessions, and ended in the library's
    words."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(PermanentError, match=rf"weight file model.safetensors is {words}; download"):
        base_model.load_bytes("m", tmp_path, quantised=False, precision="fp32")


def test_files_that_are_nested_too_deeply_are_damaged_ones(tmp_path):
    """Guard: without `RecursionError` among the errors that are expected the session ended with a traceback."""
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text("[" * 100_000)
    assert weights_of(tmp_path) == []
    with pytest.raises(PermanentError, match=r"has no readable config\.json"):
        base_model.check_code("m", tmp_path, trust_remote_code=False)
