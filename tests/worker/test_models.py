"""Base models that are not plain: towers beside the language model, odd heads, few positions, odd tokenizers."""

import json
from typing import Any

import pytest
import torch

from benchmarks.tiny_model import byte_tokenizer
from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.training.interface import Decision, PermanentError

SHORT: dict[str, Any] = {"max_steps": 2, "global_batch_size": 2, "sequence_len": 48}


def sizes(**more: Any) -> dict[str, Any]:
    tokens = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
    widths = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return tokens | widths | more


def make(folder, model, tokenizer=None):
    model.float().save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def with_tower(tmp_path_factory):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = sizes(num_key_value_heads=2, head_dim=16, sliding_window=8, max_position_embeddings=512)
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=3,
        eoi_token_index=4,
    )
    return make(tmp_path_factory.mktemp("models") / "tower", Gemma3ForConditionalGeneration(config))


def test_a_model_with_a_vision_tower(lab, with_tower):
    """Guard: without `get_text_config` its first save crashed; without `_language_model` its tower got an adapter."""
    lab.base = with_tower
    whole, cut = (lab.run(lab.spec(**SHORT), cuts=cuts) for cuts in ((), (1,)))
    assert not differing(whole.tensors, cut.tensors)
    adapted = [name for name in whole.tensors if name.startswith("adapter.")]
    assert len(adapted) == 2 * 2 * 7
    assert all(".language_model." in name for name in adapted)


def test_a_target_by_name_stays_in_the_language_model(lab, with_tower):
    lab.base = with_tower
    run = lab.run(lab.spec(**SHORT, lora_target_modules=("q_proj",)))
    assert sum(name.startswith("adapter.") for name in run.tensors) == 2 * 2
    with pytest.raises(PermanentError, match=r"\['fc1'\] match nothing in .*: down_proj, gate_proj, k_proj"):
        lab.session(lab.spec(**SHORT, lora_target_modules=("q_proj", "fc1")))


def test_a_model_stored_in_4_bits_computes_as_the_machine_does(lab, tmp_path):
    """Guard: without either line of `_compute_in` a model stored for bf16 computes in bf16, and the losses differ."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole = lab.run(lab.spec(**SHORT, adapter="qlora"))
    stored: Any = AutoModelForCausalLM.from_pretrained(
        lab.base,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    for module in stored.modules():
        if hasattr(module, "compute_dtype"):
            module.weight.quant_state.dtype = torch.bfloat16
    stored.save_pretrained(tmp_path / "stored")
    byte_tokenizer().save_pretrained(tmp_path / "stored")
    lab.base = tmp_path / "stored"
    assert lab.run(lab.spec(**SHORT, adapter="qlora")).steps == whole.steps


def test_the_plain_models_adapter_is_told_by_names(lab):
    """Whoever loads the adapter of an ordinary model finds the usual names in it, and not a pattern."""
    run = lab.run(lab.spec(max_steps=1))
    config = json.loads((run.trained.adapter_zip.parent / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_proj", "v_porj"), r"lora_target_modules \['v_porj'\] match nothing in .*: down_proj, .*, v_proj$"),
        (("q_proj", "lm_head"), r"lora_target_modules \['lm_head'\] is the head of .*; leave it out"),
        (("q_proj", "mlp"), r"no adapter can be put on \['q_proj', 'mlp'\] of .*: Target module LlamaMLP"),
    ],
)
def test_each_target_has_to_be_there(lab, targets, words):
    """Guard: without `_check_targets` a misspelt name beside a right one was left out unsaid; the rest were raw errors."""
    with pytest.raises(PermanentError, match=words):
        lab.session(lab.spec(lora_target_modules=targets))


def test_a_job_that_began_with_a_misspelt_target_goes_on(lab, monkeypatch):
    """Guard: without `resumed` an upgrade of the worker would end such a job for good."""
    from worker.training.backends import base

    spec = lab.spec(**SHORT, lora_target_modules=("q_proj", "v_porj"))
    with monkeypatch.context() as before:
        before.setattr(base, "_check_targets", lambda *_: None)
        _, hooks = lab.session(spec, decisions={1: Decision.SAVE_AND_STOP})
    half = lab.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    assert lab.session(spec, resume=half)[0].complete


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_embeddings_adapter_begins_the_same_everywhere(lab):
    """Guard: without its own draw `lora_embedding_B` came from whatever state the process's generator was in."""
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        runs.append(lab.run(lab.spec(max_steps=1, lora_target_modules=("q_proj", "embed_tokens"))))
    assert any("lora_embedding_B" in name for name in runs[0].tensors)
    assert not differing(runs[0].tensors, runs[1].tensors)


@pytest.fixture(scope="module")
def few_positions(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**sizes(n_positions=32))
    return make(tmp_path_factory.mktemp("models") / "gpt2", GPT2LMHeadModel(config))


def texts(lab, *rows):
    lab.dataset = lab.folder / "texts.jsonl"
    lab.dataset.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    lab.rows = len(rows)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_model_that_counts_no_further_than_its_positions(lab, few_positions):
    """Guard: without `Room` each was a bare `IndexError`, and the job was tried again on other machines."""
    lab.base = few_positions
    texts(lab, *("ab" * 10 for _ in range(6)))
    with pytest.raises(PermanentError, match="counts no further than 32 tokens; set sequence_len to no more"):
        lab.session(lab.spec(max_steps=1))
    with pytest.raises(PermanentError, match=r"sample prompt 2 has 40 tokens, .* no further than 32; shorten it"):
        lab.session(lab.spec(max_steps=1, sequence_len=24, sample_prompts=("a", "b" * 40)))
    _, hooks = lab.session(lab.spec(max_steps=1, sequence_len=24, sample_prompts=("hello " * 4,), sample_max_tokens=48))
    assert len(hooks.samples) == 2


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_long_row_that_a_resumed_job_meets(lab, few_positions, monkeypatch):
    from worker.training.model_limits import Room

    lab.base = few_positions
    texts(lab, *("ab" * 40 for _ in range(6)))
    monkeypatch.setattr(Room, "check_job", lambda *_: None)
    with pytest.raises(PermanentError, match=r"row \d of the dataset has 64 tokens, and the model counts no further"):
        lab.session(lab.spec(max_steps=1))


def test_a_tokenizer_that_knows_more_than_the_model(lab, tmp_path):
    """Guard: without the look at the embedding both were a bare `IndexError`, the first though padding may be any token."""
    from benchmarks.tiny_model import make_tiny_llama

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    lab.base = make_tiny_llama(tmp_path / "padded")
    tokenizer.save_pretrained(lab.base)
    assert lab.session(lab.spec(max_steps=1, sample_prompts=("a",)))[0].complete
    tokenizer.chat_template = "<pad>" + tokenizer.chat_template
    tokenizer.save_pretrained(lab.base)
    with pytest.raises(PermanentError, match=r"row \d+ of the dataset holds token 259, and the model knows only 259"):
        lab.session(lab.spec(max_steps=1))


def test_a_tokenizer_written_in_python(lab, tmp_path):
    """Guard: without the look at `is_fast` it was a bare `KeyError`."""
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes(vocab_size=400, num_key_value_heads=2))
    lab.base = make(tmp_path / "python", LlamaForCausalLM(config), ByT5Tokenizer())
    with pytest.raises(
        PermanentError, match=r"cannot be told apart; set train_on_inputs or use a model .*tokenizer.json"
    ):
        lab.session(lab.spec(max_steps=1))
    assert lab.session(lab.spec(max_steps=1, train_on_inputs=True))[0].complete


def test_heads_that_are_more_than_one_matrix():
    """The loss is that of the model's own logits. Guard: without `_reaches_its_head_directly` the dense layer and the norm
    before ModernBERT's head were passed over, without the setting's name RecurrentGemma's cap was."""
    from transformers import (
        ModernBertDecoderConfig,
        ModernBertDecoderForCausalLM,
        RecurrentGemmaConfig,
        RecurrentGemmaForCausalLM,
    )

    from worker.training.loss import add_summed_loss, backbone_states

    dense = ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**sizes(cls_token_id=0, sep_token_id=0)))
    more = sizes(num_hidden_layers=3, lru_width=64, attention_window_size=16, logits_soft_cap=0.5)
    capped = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**more))
    ids = torch.arange(5, 25)[None]
    for model in (dense, capped):
        model.eval().requires_grad_(requires_grad=False)
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1].float()
        own = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        add_summed_loss(model, backbone_states)
        assert torch.allclose(model(input_ids=ids, attention_mask=mask, summed_labels=ids), own, rtol=1e-4)
