"""Rows are written with TRL's training template where there is one. Prompts are not, nor are rows of older jobs."""

import hashlib
import shutil
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.tiny_model import byte_tokenizer
from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.adapters.token_preview import TokenLooks
from tests.helpers.training_runs import differing
from tests.worker.test_look import asked, shown_mask, write
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.dataset_files import Message, Row
from worker.shared.dataset_spec import FileFormat, RowFormat
from worker.shared.job_spec import ENCODING
from worker.training.data import rendered_sha256
from worker.training.encoding import Encoder
from worker.training.encoding_findings import findings
from worker.training.interface import Decision
from worker.training.token_preview import how_to_install, preview_tokens
from worker.training.training_template import training_template

BEFORE, NOW = 2, 3
"""Versions of the encoding: the model's own template, and TRL's training template where there is one."""
TURNS = [("user", "hi"), ("assistant", "hello"), ("user", "more"), ("assistant", "bye now")]
CHAT = Row(messages=tuple(Message(role, words) for role, words in TURNS))
EMPTY = "<think>\n\n</think>\n\n"


def folder() -> Path:
    found = find_spec("trl")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "chat_templates"


def template(name: str) -> str:
    return (folder() / f"{name}.jinja").read_text(encoding="utf-8")


def made(name: str, encoding: int = NOW, **how):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template(name)
    return tokenizer, Encoder(tokenizer, 512, how.get("everything", False), encoding=encoding)


def learnt(tokenizer, example) -> str:
    return tokenizer.decode([label for label in example.labels if label != -100])


def test_the_list_has_the_templates_that_trl_replaces():
    """Guard: a template that is not in the list would be rendered as before, although TRL has one for training."""
    from trl.chat_template_utils import get_training_chat_template

    def by_trl(tokenizer):
        try:
            return get_training_chat_template(tokenizer)
        except ValueError:
            return None

    replaced = 0
    for path in sorted(folder().glob("*.jinja")):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        wanted = by_trl(tokenizer)
        assert training_template(tokenizer) == wanted, path.name
        replaced += wanted is not None
        # The job's time is pinned by what the model's own template asks for.
        assert "strftime_now" in tokenizer.chat_template or "strftime_now" not in (wanted or "")
    assert replaced > 20
    tokenizer.chat_template = {"default": template("qwen3"), "other": "{{ messages }}"}
    assert training_template(tokenizer) == template("qwen3_training")
    assert training_template(byte_tokenizer()) is None


def test_all_answers_of_a_row_begin_alike():
    """Guard: without the training template only the last answer has the empty thought."""
    for encoding, text in (
        (BEFORE, f"hello<|im_end|>\n{EMPTY}bye now<|im_end|>\n"),
        (NOW, f"{EMPTY}hello<|im_end|>\n{EMPTY}bye now<|im_end|>\n"),
    ):
        tokenizer, encoder = made("qwen3", encoding)
        assert learnt(tokenizer, encoder.encode(CHAT)) == text
    tokenizer, encoder = made("qwen3", everything=True)
    assert learnt(tokenizer, encoder.encode(CHAT)).count(EMPTY) == 2
    given = Row(messages=CHAT.messages, given=2)
    tokenizer, encoder = made("qwen3")
    assert learnt(tokenizer, encoder.encode(given)) == f"{EMPTY}bye now<|im_end|>\n"
    thought = Row(messages=(Message("user", "hi"), Message("assistant", "<think>\nwell\n</think>\n\nhello")))
    for name in ("qwen3", "deepseek_r1_distill"):
        tokenizer, encoder = made(name)
        assert "well\n</think>\n\nhello" in learnt(tokenizer, encoder.encode(thought))


def test_prompts_keep_the_models_own_template():
    """Guard: an answer to a prompt of the training template would be one to a text that the adapter never gets."""
    own = [made("qwen3_5_think", encoding)[1] for encoding in (BEFORE, NOW)]
    assert own[0].prompt_ids("hi", chat=True) == own[1].prompt_ids("hi", chat=True)
    assert own[0].answer_prompt(CHAT.messages[:3]) == own[1].answer_prompt(CHAT.messages[:3])
    assert own[1].own_text_of(CHAT.messages) == own[0].text_of(CHAT.messages) != own[1].text_of(CHAT.messages)


def test_the_hash_of_the_rows_covers_the_template():
    """Guard: the marks of a training template are no text, so a session without them trained on other tokens of the
    same rows.
    """
    tokenizer, before = made("qwen2_5", BEFORE)
    _, now = made("qwen2_5")
    assert before.rendered(CHAT) == now.rendered(CHAT)
    assert before.encode(CHAT).labels != now.encode(CHAT).labels
    assert rendered_sha256([CHAT], before) != rendered_sha256([CHAT], now)
    plain = Row(prompt="a", text="b")
    assert rendered_sha256([plain], before) == rendered_sha256([plain], now)
    tokenizer.chat_template = byte_tokenizer().chat_template
    old, new = (Encoder(tokenizer, 512, False, encoding=encoding) for encoding in (BEFORE, NOW))
    assert rendered_sha256([CHAT], old) == rendered_sha256([CHAT], new), "there is no training template"
    assert old.encode(CHAT) == new.encode(CHAT)


def test_a_finding_says_which_template_is_used():
    """Guards: without `_of_templates` nothing is said; without one sentence of each kind, each row has its own."""
    rows = [CHAT, Row(messages=(*CHAT.messages[:1], Message("assistant", "good day"), *CHAT.messages[2:]))]
    tokenizer, encoder = made("qwen3")
    (said,) = findings(encoder, tokenizer, rows)
    assert said.startswith("Rows are written with TRL's training template")
    assert (
        f"it has {(EMPTY + 'hello<|im_end|>')[:30]!r} where the model's own chat template has 'hello<|im_end|>" in said
    )
    assert said.endswith("Sample prompts and the exported adapter keep the model's own.")
    tokenizer, encoder = made("qwen3", BEFORE)
    assert "begins the last answer of a row" in " ".join(findings(encoder, tokenizer, rows))
    tokenizer, encoder = made("qwen2_5")
    assert findings(encoder, tokenizer, rows) == (), "the text is the same"


def test_without_trl_such_rows_are_not_judged(monkeypatch, tmp_path):
    """Guard: taken for a fault of the row, the missing library refused the job."""
    tokenizer, _ = made("qwen3")
    tokenizer.save_pretrained(tmp_path)
    chat = write(tmp_path / "rows", FileFormat.JSONL, [{"messages": [{"role": r, "content": c} for r, c in TURNS]}])
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "trl.chat_template_utils", None)
    with pytest.raises(ImportError) as missing:
        preview_tokens(asked(tmp_path, chat, RowFormat.MESSAGES, FileFormat.JSONL))
    assert how_to_install(missing.value) == "pip install 'trainhop[train]'", "the preview's libraries are there"
    text = write(tmp_path / "text", FileFormat.JSONL, [{"text": "plain"}])
    assert preview_tokens(asked(tmp_path, text, RowFormat.TEXT, FileFormat.JSONL))["lengths"] == [6]


def test_the_preview_shows_the_rows_of_a_session(base, tmp_path):
    """In its own process, with TRL, within the limits of memory and time."""
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template("qwen3"))
    rows = write(tmp_path / "rows", FileFormat.JSONL, [{"messages": [{"role": r, "content": c} for r, c in TURNS]}])
    _, encoder = made("qwen3", ENCODING)
    wanted = [label != -100 for label in encoder.encode(CHAT).labels]
    looks = TokenLooks(FolderAndHubCatalog([tmp_path], frozenset(), offline=True), offline=True)
    how = {"sequence_len": 512, "train_on_inputs": False}
    look = looks.of(str(model), rows, RowFormat.MESSAGES, FileFormat.JSONL, **how)
    assert look.away == look.fault == ""
    pieces = [{"cut": p.cut, "trained": p.trained, "tokens": p.tokens} for p in look.shown[0].pieces]
    assert shown_mask({"pieces": pieces}) == wanted
    assert ["TRL's training template" in finding for finding in look.findings] == [True]


def test_an_older_job_goes_on_with_its_rows(training, dataset, tmp_path):
    """Guard: with the training template in a job of the version before, its checkpoint was refused. A job of today with
    that checkpoint is refused, because its rows are others.
    """
    training.base = shutil.copytree(training.base, tmp_path / "qwen3")
    (training.base / "chat_template.jinja").write_text(template("qwen3"))
    chat = {"messages": [{"role": r, "content": c} for r, c in TURNS]}
    training.dataset = write(tmp_path / "rows.jsonl", FileFormat.JSONL, [chat] * training.rows)
    hashes, adapters = [], []
    for encoding in (BEFORE, NOW):
        spec = training.spec(max_steps=3, sequence_len=160, encoding=encoding, sample_prompts=("hi",))
        whole, unbroken = training.session(spec, name=f"whole{encoding}")
        _, first = training.session(spec, decisions={2: Decision.SAVE_AND_STOP}, name=f"first{encoding}")
        path = training.folder / f"{encoding}.safetensors"
        checkpoint_file.write(path, first.snapshots[-1].tensors, first.snapshots[-1].manifest)
        result, hooks = training.session(spec, resume=path, name=f"second{encoding}")
        assert hooks.restores == [(2, "exact", "hf")]
        assert result.adapter_sha256 == whole.adapter_sha256
        assert differing(hooks.snapshots[-1].tensors, unbroken.snapshots[-1].tensors) == []
        hashes.append(hooks.snapshots[-1].manifest.recipe.rows_sha256)
        adapters.append(result.adapter_sha256)
        with zipfile.ZipFile(training.folder / f"second{encoding}" / "adapter.zip") as exported:
            assert exported.read("chat_template.jinja").decode() == template("qwen3")
    assert hashes[0] != hashes[1]
    assert adapters[0] != adapters[1]
    tokenizer, _ = made("qwen3")
    text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in TURNS], tokenize=False).encode()
    assert hashes[0] == hashlib.sha256((b"4 0 0 %d\n" % len(text) + text) * training.rows).hexdigest()
    with pytest.raises(CheckpointError, match="encoding"):
        training.session(spec, resume=training.folder / f"{BEFORE}.safetensors", name="refused")
