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


def test_a_model_with_a_vision_tower(training, with_tower):
    """Guard: without `get_text_config` its first save crashed; without `_language_model` its tower got an adapter."""
    training.base = with_tower
    whole, cut = (training.run(training.spec(**SHORT), cuts=cuts) for cuts in ((), (1,)))
    assert not differing(whole.tensors, cut.tensors)
    adapted = [name for name in whole.tensors if name.startswith("adapter.")]
    assert len(adapted) == 2 * 2 * 7
    assert all(".language_model." in name for name in adapted)


def test_a_target_by_name_stays_in_the_language_model(training, with_tower):
    training.base = with_tower
    run = training.run(training.spec(**SHORT, lora_target_modules=("q_proj",)))
    assert sum(name.startswith("adapter.") for name in run.tensors) == 2 * 2
    with pytest.raises(PermanentError, match=r"\['fc1'\] match nothing in .*: down_proj, gate_proj, k_proj"):
        training.session(training.spec(**SHORT, lora_target_modules=("q_proj", "fc1")))


def test_a_model_stored_in_4_bits_computes_as_the_machine_does(training, tmp_path):
    """Guard: without either line of `_compute_in` a model stored for bf16 computes in bf16, and the losses differ."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole = training.run(training.spec(**SHORT, adapter="qlora"))
    stored: Any = AutoModelForCausalLM.from_pretrained(
        training.base,
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
    training.base = tmp_path / "stored"
    assert training.run(training.spec(**SHORT, adapter="qlora")).steps == whole.steps


def test_the_plain_models_adapter_is_told_by_names(training):
    """Whoever loads the adapter of an ordinary model finds the usual names in it, and not a pattern."""
    run = training.run(training.spec(max_steps=1))
    config = json.loads((run.trained.adapter_zip.parent / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_proj", "v_porj"), r"lora_target_modules \['v_porj'\] match nothing in .*: down_proj, .*, v_proj$"),
        (("q_proj", "lm_head"), r"lora_target_modules \['lm_head'\] is the head of .*; leave it out"),
        (("q_proj", "mlp"), r"an adapter cannot be added to \['q_proj', 'mlp'\] of .*: Target module LlamaMLP"),
    ],
)
def test_each_target_has_to_be_there(training, targets, words):
    """Guard: without `_check_targets` a misspelt name beside a right one was left out unsaid; the rest were raw
    errors."""
    with pytest.raises(PermanentError, match=words):
        training.session(training.spec(lora_target_modules=targets))


def test_a_job_that_began_with_a_misspelt_target_goes_on(training):
    """Its first session is older than that refusal: it left `v_porj` out. Its recipe is rewritten for that.

    Guard: without `resumed` an upgrade of the worker would end such a job for good.
    """
    right = training.spec(**SHORT, lora_target_modules=("q_proj",))
    misspelt = training.spec(**SHORT, lora_target_modules=("q_proj", "v_porj"))
    _, hooks = training.session(right, decisions={1: Decision.SAVE_AND_STOP})
    snapshot = hooks.snapshots[-1]
    changes = {"lora_target_modules": misspelt.lora_target_modules}
    recipe = snapshot.manifest.recipe.model_copy(update=changes)
    half = training.folder / "half.safetensors"
    checkpoint_file.write(half, snapshot.tensors, snapshot.manifest.model_copy(update={"recipe": recipe}))
    assert training.session(misspelt, resume=half)[0].complete


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_embeddings_adapter_begins_the_same_everywhere(training):
    """Guard: without its own draw `lora_embedding_B` came from whatever state the process's generator was in."""
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        runs.append(training.run(training.spec(max_steps=1, lora_target_modules=("q_proj", "embed_tokens"))))
    assert any("lora_embedding_B" in name for name in runs[0].tensors)
    assert not differing(runs[0].tensors, runs[1].tensors)


@pytest.fixture(scope="module")
def few_positions(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**sizes(n_positions=32))
    return make(tmp_path_factory.mktemp("models") / "gpt2", GPT2LMHeadModel(config))


def texts(training, *rows):
    training.dataset = training.folder / "texts.jsonl"
    training.dataset.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    training.rows = len(rows)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_model_that_counts_no_further_than_its_positions(training, few_positions):
    """Guard: without `ModelLimits` each was a bare `IndexError`, and the job was tried again on other machines."""
    training.base = few_positions
    texts(training, *("ab" * 10 for _ in range(6)))
    with pytest.raises(PermanentError, match="supports only 32 positions; set sequence_len to that"):
        training.session(training.spec(max_steps=1))
    with pytest.raises(
        PermanentError, match=r"sample prompt 2 has 40 tokens .* supports only 32 positions; shorten it"
    ):
        training.session(training.spec(max_steps=1, sequence_len=24, sample_prompts=("a", "b" * 40)))
    _, hooks = training.session(
        training.spec(max_steps=1, sequence_len=24, sample_prompts=("hello " * 4,), sample_max_tokens=48)
    )
    assert len(hooks.samples) == 2


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_long_row_that_a_resumed_job_meets(training, few_positions):
    """Its first session is older than the refusal of such a job. Its checkpoint's manifest is rewritten for that."""
    training.base = few_positions
    texts(training, *("ab" * 40 for _ in range(6)))
    _, hooks = training.session(training.spec(max_steps=2, sequence_len=24), decisions={1: Decision.SAVE_AND_STOP})
    snapshot = hooks.snapshots[-1]
    recipe = snapshot.manifest.recipe.model_copy(update={"sequence_len": 64})
    half = training.folder / "half.safetensors"
    manifest = snapshot.manifest.model_copy(update={"recipe": recipe, "next_tokens_sha256": None})
    checkpoint_file.write(half, snapshot.tensors, manifest)
    with pytest.raises(PermanentError, match=r"row \d of the dataset has 64 tokens, but the model supports only"):
        training.session(training.spec(max_steps=2, sequence_len=64), resume=half)


def test_a_tokenizer_that_knows_more_than_the_model(training, tmp_path):
    """Guard: without the look at the embedding both were a bare `IndexError`, the first though padding may be any
    token."""
    from benchmarks.tiny_model import make_tiny_llama

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    training.base = make_tiny_llama(tmp_path / "padded")
    tokenizer.save_pretrained(training.base)
    assert training.session(training.spec(max_steps=1, sample_prompts=("a",)))[0].complete
    tokenizer.chat_template = "<pad>" + tokenizer.chat_template
    tokenizer.save_pretrained(training.base)
    with pytest.raises(PermanentError, match=r"row \d+ of the dataset has token 259, but the model has only 259"):
        training.session(training.spec(max_steps=1))


def test_a_tokenizer_written_in_python(training, tmp_path):
    """Guard: without the look at `is_fast` it was a bare `KeyError`."""
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes(vocab_size=400, num_key_value_heads=2))
    training.base = make(tmp_path / "python", LlamaForCausalLM(config), ByT5Tokenizer())
    with pytest.raises(PermanentError, match=r"cannot be found; set train_on_inputs or use a model .*tokenizer.json"):
        training.session(training.spec(max_steps=1))
    assert training.session(training.spec(max_steps=1, train_on_inputs=True))[0].complete


def test_heads_that_are_more_than_one_matrix():
    """The loss is that of the model's own logits. Guard: without `_reaches_its_head_directly` the dense layer and the
    norm before ModernBERT's head were passed over, without the setting's name RecurrentGemma's cap was."""
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
