"""Modelfile, vocabulary and NF4: what is written beside the tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.export.models import byte_level, sentencepiece_like
from benchmarks.tiny_model import CHAT_TEMPLATE, byte_tokenizer
from worker.export.gguf_reader import GgufFile
from worker.export.modelfile import modelfile, stops_of, turns_of
from worker.export.vocabulary import read_vocabulary

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
THINKING = CHAT_TEMPLATE + "{% if messages | length > 3 %}{{ 'long' }}{% endif %}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SMOLLM, GEMMA, LLAMA3, MISTRAL])
def test_turns_of_common_templates_give_the_same_text(template) -> None:
    """`turns_of` compares several conversations with the template itself."""
    assert turns_of(template, SPECIAL) is not None


@pytest.mark.parametrize("template", [THINKING, "{{ nonsense", "{{ raise_exception('no') }}", "always the same"])
def test_other_templates_have_no_turns(template) -> None:
    """Guard: without `_is_faithful` the first one had turns that were wrong in a long conversation."""
    assert turns_of(template, SPECIAL) is None


def test_a_modelfile_says_what_the_template_does() -> None:
    turns = turns_of(SMOLLM, SPECIAL)
    stops = stops_of(turns, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>")
    template = (
        '{{ $first := true }}{{ if not .System }}{{ "<|im_start|>system\\nYou are helpful" }}{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "system" }}{{ "<|im_start|>system\\n" }}{{ .Content }}{{ end }}'
        '{{ if eq .Role "user" }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}{{ .Content }}{{ $first = false }}{{ end }}'
        '{{ if eq .Role "assistant" }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}{{ .Content }}{{ end }}'
        '{{ end }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}'
    )
    assert modelfile("./model.gguf", turns, stops).splitlines() == [
        "FROM ./model.gguf",
        f'TEMPLATE """{template}"""',
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|im_start|>"',
    ]
    with_adapter = modelfile("./base.gguf", None, [], adapter="./adapter.gguf").splitlines()
    assert with_adapter[1:] == ["FROM ./base.gguf", "ADAPTER ./adapter.gguf"]


def test_quotes_and_backslashes_of_a_template_are_text_in_go() -> None:
    turns = turns_of(CHAT_TEMPLATE.replace("<|im_start|>", "{{ '\"\\\\' }}"), SPECIAL)
    assert turns is not None
    assert '{{ "\\"\\\\user\\n" }}' in modelfile("x", turns, [])


def test_the_commands_name_what_is_there(llama, tmp_path) -> None:
    out = tmp_path / "my out"
    report = llama.export(out, "gguf", "q8_0", adapter_name="job-1-adapter")
    assert report["commands"]["ollama"] == f"ollama create base-lora -f '{out}/Modelfile'"
    assert report["commands"]["llama.cpp"] == f"llama-cli -m '{out}/model-q8_0.gguf'"
    assert "--lora-modules base-lora=job-1-adapter --max-lora-rank 8" in report["commands"]["vllm"]
    assert (out / "Modelfile").read_text().startswith("FROM ./model-q8_0.gguf\nTEMPLATE ")
    assert json.loads((out / "trainhop-export.json").read_text()) == report


def saved(tokenizer, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def test_a_byte_level_vocabulary(tmp_path) -> None:
    found = read_vocabulary(saved(byte_level(), tmp_path))
    assert (found.model, found.pre, found.adds_bos, found.adds_eos) == ("gpt2", "llama-bpe", True, False)
    assert found.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 0}
    assert found.types[:5] == [3, 3, 3, 3, 1]
    assert len(found.merges) > 50


def test_a_vocabulary_like_that_of_sentencepiece(tmp_path) -> None:
    found = read_vocabulary(saved(sentencepiece_like(), tmp_path))
    assert (found.model, found.pre, found.adds_bos, found.adds_space) == ("llama", "default", True, True)
    assert found.tokens[4] == "<0x00>"
    assert set(found.types[4:260]) == {6}
    joined = [
        score for text, score in zip(found.tokens, found.scores, strict=True) if len(text) > 1 and -1000 < score < 0
    ]
    # The earlier a pair is joined, the higher its score.
    assert joined == sorted(joined, reverse=True)


@pytest.mark.parametrize(("change", "pre"), [({}, "gpt-2"), ({"digits": True}, "smollm")])
def test_splits_by_name(tmp_path, change, pre) -> None:
    folder = saved(byte_tokenizer(), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, level]} if change else level
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert read_vocabulary(folder).pre == pre


def test_the_file_has_the_tokenizers_settings(pairing, tmp_path) -> None:
    pairing("mistral").export(tmp_path / "out", "gguf", "fp16")
    settings = GgufFile(tmp_path / "out" / "model-f16.gguf").settings
    assert settings["tokenizer.ggml.model"] == "llama"
    assert settings["tokenizer.ggml.eos_token_id"] == 2
    assert settings["tokenizer.ggml.add_bos_token"] is True
    assert settings["tokenizer.chat_template"] == CHAT_TEMPLATE
    rows = settings["llama.vocab_size"]
    assert len(settings["tokenizer.ggml.tokens"]) == len(settings["tokenizer.ggml.scores"]) == rows
    assert settings["tokenizer.ggml.tokens"][-1] == f"[PAD{rows - 1}]"


def test_an_adapter_of_qlora_says_how_far_its_base_is(llama, tmp_path) -> None:
    import shutil

    from tests.export.conftest import Pairing

    pytest.importorskip("bitsandbytes")
    shutil.copytree(llama.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("| recipe | |\n|---|---|\n| adapter | `qlora` |\n")
    pair = Pairing(llama.base, tmp_path / "adapter")
    original = pair.export(tmp_path / "original", "merged", "fp16")
    assert original["trained_on"] == "nf4"
    assert 0.05 < original["nf4_difference"]["weights"] < 0.15
    assert original["nf4_difference"]["logits"] > 0.01
    rounded = pair.export(tmp_path / "nf4", "merged", "fp16", onto="nf4")
    assert rounded["onto"] == "nf4"
    assert rounded["check"]["error"] < 0.01
