"""Answers of base and adapter from one loaded model, against plain transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_model import make_tiny_mixture
from tests.chat.conftest import Pairing
from worker.chat.model import ChatError, ChatModel
from worker.chat.side_by_side import answer
from worker.export.adapter import read_adapter
from worker.shared.chat import ChatEvent, ChatTurn, Kind, Question
from worker.shared.evaluation_units import Arm

ASKED = "Where does the trail begin?"
TOKENS = 24


def said(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def model(pairing: Pairing) -> ChatModel:
    return ChatModel(pairing.adapter, None, said)


def events_of(model: ChatModel, question: Question, cancelled_after: int = 10**9) -> list[ChatEvent]:
    """The events of an answer that is cancelled after so many tokens."""
    events: list[ChatEvent] = []
    left = iter(range(cancelled_after))
    answer(model, question, events.append, lambda: next(left, None) is None)
    return events


def text_of(events: list[ChatEvent], arm: Arm) -> str:
    return "".join(event.text for event in events if event.kind is Kind.TEXT and event.arm is arm)


def plainly(pairing: Pairing, messages: list[dict[str, str]], arm: Arm) -> str:
    """The greedy answer of a model that was never in a chat."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(pairing.base)
    model: Any = AutoModelForCausalLM.from_pretrained(pairing.base, dtype=torch.float32)
    if arm is Arm.ADAPTER:
        model = PeftModel.from_pretrained(model, pairing.adapter)
    model.eval()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    settings = GenerationConfig(eos_token_id=2, pad_token_id=0, max_new_tokens=TOKENS, do_sample=False)
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_streamed_greedy_answers_are_those_of_plain_models(model: ChatModel, pairing: Pairing) -> None:
    """Guards: with the adapter left on for the base, or off for itself, one of both differs. The base's answer is that
    of a model without an adapter."""
    asked = Question(
        question="And then?",
        system="Be short.",
        turns=(ChatTurn(question=ASKED, base="At the gate.", adapter="At the lake."),),
        max_tokens=TOKENS,
    )
    events = events_of(model, asked)
    texts = {arm: text_of(events, arm) for arm in Arm}
    assert texts == {arm: plainly(pairing, asked.messages(arm), arm) for arm in Arm}
    assert texts[Arm.BASE] != texts[Arm.ADAPTER]
    assert asked.messages(Arm.BASE)[2]["content"] == "At the gate."


def test_both_answers_grow_side_by_side(model: ChatModel) -> None:
    """Guard: with one answer after the other, the second began after the first one's last piece."""
    events = events_of(model, Question(question=ASKED, max_tokens=TOKENS))
    pieces = [event.arm for event in events if event.kind is Kind.TEXT]
    assert min(pieces.count(arm) for arm in Arm) > 3
    for arm in Arm:
        assert pieces.index(arm) < len(pieces) - 1 - pieces[::-1].index(next(a for a in Arm if a is not arm))
    assert [event.kind for event in events][-1] is Kind.DONE
    assert {event.arm: event.tokens for event in events if event.kind is Kind.END}.keys() == set(Arm)


def test_one_model_alone_and_drawn_answers_repeat(model: ChatModel) -> None:
    asked = Question(question=ASKED, max_tokens=TOKENS, only="adapter", temperature=1.0, seed=3)
    first, again = events_of(model, asked), events_of(model, asked)
    assert first == again
    assert {event.arm for event in first if event.arm} == {Arm.ADAPTER}
    other = events_of(model, asked.model_copy(update={"seed": 4}))
    assert text_of(other, Arm.ADAPTER) != text_of(first, Arm.ADAPTER)


def test_a_cancelled_answer_ends_at_once(model: ChatModel) -> None:
    """Guard: without asking `is_cancelled`, both answers went on to their last token."""
    events = events_of(model, Question(question=ASKED, max_tokens=TOKENS), cancelled_after=4)
    assert [event.text for event in events if event.kind is Kind.END] == ["cancelled", "cancelled"]
    assert sum(event.tokens or 0 for event in events) == 4


def test_a_conversation_that_is_too_long_is_refused_in_words(model: ChatModel) -> None:
    """Guard: without the check the tiny model answered beyond its 512 positions."""
    (only,) = events_of(model, Question(question="word " * 600, max_tokens=TOKENS))
    assert only.kind is Kind.FAILED
    assert "tokens, and at most 511 can be read here; begin a new conversation" in only.text
    nearly = events_of(model, Question(question="a", turns=(ChatTurn(question="b " * 225, base="c", adapter="c"),)))
    assert nearly[-1].kind is Kind.DONE
    lengths = [event.tokens or 0 for event in nearly if event.kind is Kind.END]
    assert max(lengths) < 256


def test_a_template_that_refuses_is_named(pairing: Pairing, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(pairing.base, base)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    (base / "chat_template.jinja").write_text(refuses)
    strict = ChatModel(pairing.adapter, str(base), said)
    (only,) = events_of(strict, Question(question=ASKED, system="Be short."))
    assert only.text.startswith("The chat template of this model refuses the conversation (no system); leave the sys")


def test_an_adapter_of_another_base_is_refused(pairing: Pairing, tmp_path: Path) -> None:
    """Guard: without `_check_modules` PEFT's own error named neither the module's size nor a remedy."""
    from benchmarks.export.models import make_model

    other = make_model(tmp_path / "other", "llama", intermediate_size=96)
    with pytest.raises(ChatError, match=r"belongs to another base model: model\.layers\.\d.*\[64, 128\].*--base"):
        ChatModel(pairing.adapter, str(other), said)


def test_faults_of_the_folder_are_words(pairing: Pairing, tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="not on this computer, and nothing is downloaded"):
        ChatModel(pairing.adapter, "nobody/nothing", said, local_only=True)
    broken = tmp_path / "broken"
    shutil.copytree(pairing.adapter, broken)
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(ChatError, match="which cannot be used in a chat"):
        ChatModel(broken, None, said)


def test_a_model_without_room_is_refused_before_it_is_loaded(pairing: Pairing, tmp_path: Path) -> None:
    """Guard: without `check_fit` it was loaded. Its weights say that they have 64 TiB, in a file without blocks."""
    base = tmp_path / "base"
    shutil.copytree(pairing.base, base)
    shape = [2**22, 2**22]
    header = json.dumps({"x.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ChatError, match="GiB but the free memory of this machine is"):
        ChatModel(pairing.adapter, str(base), said)


def test_a_chat_uses_trained_tokens_and_dora(pairing: Pairing, tmp_path: Path) -> None:
    """Guard: without `for_chat` such an adapter was refused, as in an export."""
    from benchmarks.export.models import make_adapter

    folder = make_adapter(tmp_path / "adapter", pairing.base, use_dora=True, trainable_token_indices=[1, 2])
    model = ChatModel(folder, str(pairing.base), said)
    kinds = {type(module).__name__ for module in model.model.modules()}
    assert {"TrainableTokensWrapper", "DoraLinearLayer"} <= kinds
    assert read_adapter(folder).rows["model.embed_tokens"].numbers == (1, 2)


@pytest.mark.parametrize("kind", ["experts", "new tokens"])
def test_a_chat_uses_experts_and_new_tokens(tmp_path: Path, kind: str) -> None:
    """Guards: without `for_chat` experts were refused; without room for the new rows PEFT did not load the adapter."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from benchmarks.export.models import make_adapter

    base = make_tiny_mixture(tmp_path / "base", "Mixtral")
    options: dict[str, Any] = {"target_modules": ["q_proj"]}
    if kind == "experts":
        options |= {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    folder = make_adapter(tmp_path / "adapter", base, **options)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    if kind == "new tokens":
        number = len(tokenizer)
        tokenizer.add_tokens(["<new>"])
        weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
        name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
        save_file(load_file(weights) | {name: torch.ones(1, 32)}, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(json.loads(config.read_text()) | {"trainable_token_indices": [number]}))
    tokenizer.save_pretrained(folder)
    model = ChatModel(folder, str(base), said)
    kinds = {type(module).__name__ for module in model.model.modules()}
    assert ("ParamWrapper" if kind == "experts" else "TrainableTokensWrapper") in kinds
