"""New tokens: exact under cuts, reproduced by plain PEFT with the exported tokenizer, refused in words."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from benchmarks.tiny_model import byte_tokenizer, make_tiny_llama
from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.dataset_spec import RowFormat
from worker.shared.export_spec import no_form
from worker.shared.job_spec import ENCODING, NUMERICS
from worker.shared.manifest import Recipe
from worker.training import new_tokens
from worker.training.encoding import load_tokenizer
from worker.training.interface import Decision, PermanentError
from worker.training.token_preview import Request, preview_tokens

NEW = ("<call>", "</call>")
NEWEST = {"encoding": ENCODING, "numerics": NUMERICS, "max_steps": 4}
ROW = {"messages": [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "<call>2</call>"}]}


@pytest.fixture(scope="module", params=["tied", "untied", "free rows"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a reserved token, number 259."""
    from transformers import AutoModelForCausalLM

    folder = make_tiny_llama(tmp_path_factory.mktemp("model") / "base")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<reserved>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    rows = 264 if request.param == "free rows" else 260
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        loaded.resize_token_embeddings(rows, mean_resizing=False)
        if request.param == "untied":
            loaded.config.tie_word_embeddings = False
            loaded.lm_head.weight = torch.nn.Parameter(torch.randn(rows, 64) * 0.02)
    loaded.save_pretrained(folder)
    return folder


@pytest.fixture
def taught(training: TrainingRuns, model: Path, tmp_path: Path) -> TrainingRuns:
    rows = tmp_path / "calls.jsonl"
    rows.write_text("".join(json.dumps(ROW) + "\n" for _ in range(training.rows)))
    training.base, training.dataset = model, rows
    return training


def test_new_tokens_survive_cuts_and_load_with_plain_peft(taught: TrainingRuns, tmp_path: Path) -> None:
    """Guards: without `make_room` the first pass failed; with random rows in their place the cut run differed; without
    rows of the head a model with two tables could not write the tokens; without the tokens in the exported tokenizer
    they were several pieces."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = taught.spec(**NEWEST, tokens=NEW, added_tokens_overrides={259: "<think>"}, backend="auto")
    assert spec.library == "hf"
    whole, cut = taught.run(spec), taught.run(spec, [1, 3])
    adapter, of_cut = whole.trained.adapter_zip, cut.trained.adapter_zip
    assert adapter is not None
    assert of_cut is not None
    assert of_cut.read_bytes() == adapter.read_bytes()
    assert differing(cut.tensors, whole.tensors) == []
    assert {restore[1] for hooks in cut.sessions for restore in hooks.restores} == {"exact"}
    trained = {name: v for name, v in whole.tensors.items() if name.startswith("adapter.") and "tokens_delta" in name}
    is_tied = json.loads((taught.base / "config.json").read_text())["tie_word_embeddings"]
    assert len(trained) == (1 if is_tied else 2)
    mean = _mean(taught.base)
    for values in trained.values():
        assert values.shape == (3, 64)
        assert (values[1] != values[2]).any()  # both rows have learnt, from the same start
    if is_tied:
        assert (abs(next(iter(trained.values())) - mean.numpy()) < 4 * 1e-2 + 1e-6).all()  # four steps of AdamW

    with zipfile.ZipFile(adapter) as packed:
        packed.extractall(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer.convert_tokens_to_ids(["<think>", *NEW]) == [259, 260, 261]
    assert "make room" in (tmp_path / "adapter" / "README.md").read_text()
    base: Any = AutoModelForCausalLM.from_pretrained(taught.base)
    # The line that a person needs, as the model card and the docs have it.
    base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().weight.shape[0]))
    found = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = tokenizer("a <call>b</call> <think>", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 7)
    with torch.no_grad():
        logits = found(input_ids=ids).logits[..., :262]
        by_itself = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(input_ids=ids).logits
    assert torch.allclose(by_itself[..., :262], logits, atol=1e-6)
    assert torch.allclose(logits, _by_hand(taught.base, whole.tensors, ids)[..., :262], atol=1e-5)


def _mean(base: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    weight = model.get_input_embeddings().weight.data
    return weight[:260].double().mean(0).float()


def _by_hand(base: Path, tensors: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the base model with trained rows and updates, without PEFT."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if model.get_input_embeddings().weight.shape[0] < 262:
        model.resize_token_embeddings(262)
    for name, value in tensors.items():
        path = name.removeprefix("adapter.base_model.model.")
        if not name.startswith("adapter.") or ".lora_B." in name:
            continue
        if ".lora_A." in name:
            update = torch.tensor(tensors[name.replace("lora_A", "lora_B")]) @ torch.tensor(value)
            model.get_parameter(f"{path.partition('.lora_A')[0]}.weight").data += update * (32 / 4)
        else:
            model.get_parameter(f"{path.partition('.token_adapter')[0]}.weight").data[259:262] = torch.tensor(value)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_a_checkpoint_of_other_tokens_is_refused(taught: TrainingRuns) -> None:
    """Guard: without the fields of `Recipe` only the hash of the tokenizer told it."""
    spec = taught.spec(**NEWEST, tokens=NEW)
    _, hooks = taught.session(spec, decisions={1: Decision.SAVE_AND_STOP})
    half = taught.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    for changes in ({"tokens": NEW[::-1]}, {}, {"tokens": NEW, "added_tokens_overrides": {259: "<think>"}}):
        with pytest.raises(CheckpointError, match="tokens"):
            taught.session(taught.spec(**NEWEST, **changes), resume=half)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": ["<|im_start|>"]}, r"already has the token '<\|im_start\|>' \(number 1\); leave it out"),
        ({"tokens": ["a"]}, "already has the token 'a'"),
        ({"added_tokens_overrides": {5: "<x>"}}, "5 is not one of the tokens that were added"),
        ({"added_tokens_overrides": {9999: "<x>"}}, "9999 is not one of the tokens that were added"),
        ({"added_tokens_overrides": {2: "<x>"}}, r"token 2 \(<\|im_end\|>\) is a special token of the model"),
        ({"added_tokens_overrides": {1: "<x>"}}, r"token 1 \(<\|im_start\|>\) is in the chat template"),
        ({"added_tokens_overrides": {259: "<|im_end|>"}}, "already has the token"),
    ],
)
@pytest.mark.parametrize("model", ["tied"], indirect=True)
def test_tokens_that_cannot_be_are_refused(taught: TrainingRuns, changes: dict[str, Any], words: str) -> None:
    """Guard: without the checks the library said nothing, and the rows of other tokens were trained."""
    with pytest.raises(PermanentError, match=words):
        taught.session(taught.spec(**NEWEST, **changes))
    looked = preview_tokens(_request(taught, **changes))  # what submission refuses
    with pytest.raises(PermanentError, match=words):
        raise PermanentError(looked["fault"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": [""]}, "must be a text without white space"),
        ({"tokens": [" <x>"]}, "must be a text without white space"),
        ({"tokens": ["<x>", "<x>"]}, "name '<x>' twice"),
        ({"tokens": ["<x>"], "added_tokens_overrides": {259: "<x>"}}, "name '<x>' twice"),
        ({"tokens": [f"<{number}>" for number in range(1001)]}, "at most 1000"),
        ({"tokens": ["x" * 101]}, "at most 100"),
        ({"added_tokens_overrides": {-1: "<x>"}}, "added_tokens_overrides"),
        ({"added_tokens_overrides": {"one": "<x>"}}, "added_tokens_overrides"),
        ({"tokens": ["<x>"], "backend": "unsloth"}, "backend unsloth does not train with tokens"),
    ],
)
def test_tokens_are_checked_in_the_job_file(training, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        training.spec(**changes)


def test_a_job_without_new_tokens_names_none(training) -> None:
    """Guard: an older worker refuses keys that it does not know, and an older checkpoint names none."""
    keys = {"tokens", "added_tokens_overrides"}
    assert training.spec().model_dump().keys().isdisjoint(keys)
    plain = Recipe.of(training.spec())
    assert Recipe.model_validate(plain.model_dump(exclude=keys)) == plain
    spec = training.spec(tokens=NEW, added_tokens_overrides={12: "<b>", 5: "<a>"})
    assert spec.new_tokens == ("<a>", "<b>", *NEW)
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    assert "no place for trained tokens" in no_form(spec.model_dump(mode="json"), "gguf-adapter")
    assert no_form(spec.model_dump(mode="json"), "merged") == no_form(spec.model_dump(mode="json"), "gguf") == ""


@pytest.mark.parametrize("model", ["tied"], indirect=True)
def test_previews_see_new_tokens(taught: TrainingRuns) -> None:
    """Guard: without the tokens in the preview's tokenizer its lengths were those of several pieces."""
    (plain,), (new,) = (
        preview_tokens(_request(taught, **changes))["shown"][:1] for changes in ({}, {"tokens": list(NEW)})
    )
    assert plain["tokens"] - new["tokens"] == sum(len(text) - 1 for text in NEW)
    assert [piece["text"] for piece in new["pieces"] if piece["trained"]][:3] == ["<call>", "2", "</call>"]
    assert preview_tokens(_request(taught, tokens=list(NEW)))["fault"] == ""


def _request(taught: TrainingRuns, **changes: Any) -> Request:
    names = {str(number): text for number, text in changes.get("added_tokens_overrides", {}).items()}
    return Request(
        tokenizer=str(taught.base),
        file=str(taught.dataset),
        row_format=RowFormat.MESSAGES,
        file_format=None,
        sequence_len=64,
        train_on_inputs=False,
        rows_shown=1,
        rows_measured=4,
        seconds=5.0,
        cpu_s=15,
        tokens=changes.get("tokens", []),
        added_tokens_overrides=names,
    )


def test_an_older_file_of_settings_keeps_no_old_name(tmp_path: Path) -> None:
    """Files of earlier versions name all added tokens twice. Guard: the reserved name came back when it was read."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<reserved>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "tokenizer_config.json"
    entries = {str(n): {"content": str(t), "special": True} for n, t in tokenizer.added_tokens_decoder.items()}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": entries}))
    loaded: Any = load_tokenizer(tmp_path / "old", trust_remote_code=False)
    assert new_tokens.add_to(loaded, ["<new>"], {"259": "<think>"}) == [259, 260]
    loaded.save_pretrained(tmp_path / "new")
    again: Any = load_tokenizer(tmp_path / "new", trust_remote_code=False)
    assert again.convert_tokens_to_ids(["<think>", "<new>"]) == [259, 260]
    assert len(again) == 261
    assert "<reserved>" not in again.get_vocab()
