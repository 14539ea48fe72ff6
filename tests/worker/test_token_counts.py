"""What the data checks count with a tokenizer, in the process of its own and around it."""

import json
import shutil

import pytest

from orchestrator.adapters.token_preview import NOT_HERE, TokenLooks
from worker.shared.data_checks.token_facts import special_findings
from worker.shared.dataset_spec import RowFormat
from worker.training.encoding import load_tokenizer
from worker.training.token_counts import Request, count

OPEN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "word " * n}]}
        for n in range(1, 9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(base, file, **more) -> Request:
    how = {"sequence_len": 512, "train_on_inputs": False, "rows": 100, "seconds": 60.0, "cpu_s": 60}
    return Request(tokenizer=str(base), file=str(file), row_format="auto", **(how | more))


def test_ends_and_cut_tokens_are_counted(base, file):
    facts = count(asked(base, file))
    assert (facts.rows, facts.open_rows, facts.cut) == (8, 0, 0)
    short = count(asked(base, file, sequence_len=60))
    assert 0 < short.cut < short.trained == facts.trained
    assert short.open_rows == 0  # a cut has a check of its own
    assert short.cut_lines[-1] == 8


def test_a_template_without_an_end_token_is_seen(base, file, tmp_path):
    """Guard: with the end token of the tokenizer taken for granted, such a model runs on to its limit."""
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text(OPEN)
    facts = count(asked(model, file))
    assert (facts.open_rows, facts.open_lines) == (8, tuple(range(1, 9)))


def test_control_tokens_of_the_model_alone_are_seen_in_turns(base, file, tmp_path):
    """The common ones are found without a tokenizer."""
    tokenizer = load_tokenizer(base, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    file.write_text(file.read_text().replace("question 3", "question <|mine|>"))
    facts = count(asked(tmp_path / "model", file))
    assert (facts.special, facts.special_rows, facts.special_lines) == (("<|mine|>",), 1, (3,))
    (found,) = special_findings(facts)
    assert (found.finding.check, found.finding.level) == ("template_tokens", "stop")


def test_large_files_are_sampled(base, file):
    assert count(asked(base, file, rows=4)).rows == 4


def test_the_process_around_it(base, file, tmp_path):
    looks, how = TokenLooks(None, offline=True), {"sequence_len": 512, "train_on_inputs": False}
    facts = looks.counts(str(base), file, RowFormat.AUTO, **how)
    assert facts == count(asked(base, file))
    assert looks.counts("org/none", file, RowFormat.AUTO, **how).away == NOT_HERE
    file.write_text("{}\n")
    assert "unknown row format" in looks.counts(str(base), file, RowFormat.AUTO, **how).away
