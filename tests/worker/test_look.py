"""What a look shows is what a session trains on: the same masks, for every format, template, length and mode."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.adapters.token_preview import NOT_HERE, TokenLooks
from orchestrator.ports.catalog import TokenLook
from orchestrator.services.dataset_preview import preview, with_tokens
from tests.worker.test_data import CHAT, MARKED, THINKING, UNSTABLE
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import JobSpec
from worker.training.encoding import FALLBACK_TEMPLATE
from worker.training.token_preview import Request, preview_tokens

TURNS = [{"role": m.role, "content": m.content} for m in CHAT]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
ROWS = {
    RowFormat.MESSAGES: [{"messages": TURNS}, {"messages": TURNS[1:3]}],
    RowFormat.SHAREGPT: [{"conversations": [{"from": SHAREGPT[t["role"]], "value": t["content"]} for t in TURNS]}],
    RowFormat.PROMPT_COMPLETION: [{"prompt": "what is 日本? ", "completion": "a land é"}],
    RowFormat.ALPACA: [
        {"instruction": "add", "input": "1 + 1", "output": "2 ✓"},
        {"instruction": "go", "output": "no"},
    ],
    RowFormat.TEXT: [{"text": "plain <b>text</b> 日本語"}, {"text": "x"}],
}
CASES = [(kind, FileFormat.JSONL, rows) for kind, rows in ROWS.items()] + [
    (RowFormat.PROMPT_COMPLETION, FileFormat.JSONL, [{"prompt": TURNS[:2], "completion": TURNS[2:3]}]),
    (RowFormat.PROMPT_COMPLETION, FileFormat.JSONL, [{"prompt": TURNS[:4], "completion": TURNS[4:]}]),
    (RowFormat.ALPACA, FileFormat.CSV, ROWS[RowFormat.ALPACA]),
    (RowFormat.MESSAGES, FileFormat.PARQUET, ROWS[RowFormat.MESSAGES]),
]


def write(path: Path, container: FileFormat, rows: list) -> Path:
    if container is FileFormat.PARQUET:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif container is FileFormat.CSV:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "input", "output"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def real_labels(
    base: Path, file: Path, kind: RowFormat, container: FileFormat, rows: int, length: int, everything: bool
):
    """Labels by the way that `sft` goes: its tokenizer, its rows, its encoder."""
    from worker.training.data import Rows, load_rows
    from worker.training.encoding import Encoder, load_tokenizer

    data = DatasetSpec(path="x", type=kind, file_format=container, rows=rows)
    spec = JobSpec(base_model=str(base), datasets=(data,), max_steps=1, sequence_len=length)
    found = load_rows((file,), spec)
    encoder = Encoder(load_tokenizer(base, trust_remote_code=False), length, everything)
    return [example.labels for example in (Rows(found, range(rows), encoder)[i] for i in range(rows))]


def shown_mask(row) -> list[bool]:
    return [flag for piece in row["pieces"] if not piece["cut"] for flag in [piece["trained"]] * piece["tokens"]]


def asked(base: Path, file: Path, kind: RowFormat, container: FileFormat, **more) -> Request:
    plain = {
        "tokenizer": str(base),
        "file": str(file),
        "row_format": str(kind),
        "file_format": str(container),
        "sequence_len": 512,
        "train_on_inputs": False,
        "rows_shown": 5,
        "rows_measured": 100,
        "seconds": 60.0,
        "cpu_s": 60,
    }
    return Request(**(plain | more))


@pytest.mark.parametrize(("length", "everything"), [(512, False), (512, True), (20, False), (8, False)])
@pytest.mark.parametrize(("kind", "container", "rows"), CASES)
def test_the_masks_are_those_of_the_worker(base, tmp_path, kind, container, rows, length, everything):
    """Guard: with the first token counted as trained, or without the cut, these differ."""
    file = write(tmp_path / "rows", container, rows)
    labels = real_labels(base, file, kind, container, len(rows), length, everything)
    found = preview_tokens(asked(base, file, kind, container, sequence_len=length, train_on_inputs=everything))
    assert [shown_mask(row) for row in found["shown"]] == [[label != -100 for label in row] for row in labels]
    assert [min(n, length) for n in found["lengths"]] == [len(row) for row in labels]
    assert [row["trained"] for row in found["shown"]] == [sum(x != -100 for x in row) for row in labels]
    assert found["untrained"] == sum(all(x == -100 for x in row) for row in labels)
    assert found["fault"] == ""


@pytest.mark.parametrize("template", [MARKED, THINKING, FALLBACK_TEMPLATE], ids=["marked", "thinking", "fallback"])
def test_the_models_own_template_is_used(base, tmp_path, template):
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    file = write(tmp_path / "rows", FileFormat.JSONL, ROWS[RowFormat.MESSAGES])
    labels = real_labels(model, file, RowFormat.MESSAGES, FileFormat.JSONL, 2, 512, False)
    found = preview_tokens(asked(model, file, RowFormat.MESSAGES, FileFormat.JSONL))
    assert [shown_mask(row) for row in found["shown"]] == [[label != -100 for label in row] for row in labels]
    text = "".join(piece["text"] for piece in found["shown"][0]["pieces"])
    assert ("### User:" in text) == (template is FALLBACK_TEMPLATE)
    assert ("<think>" in text) == (template is THINKING)


def test_a_long_row_is_shown_where_it_begins_and_where_it_is_cut(base, tmp_path):
    """However the row is folded, its pieces count every token once, and a character is never torn."""
    file = write(tmp_path / "rows", FileFormat.JSONL, [{"text": "é" * 3_000}])
    for length in (100, 380, 500, 2_000, 9_000):
        (row,) = preview_tokens(asked(base, file, RowFormat.TEXT, FileFormat.JSONL, sequence_len=length))["shown"]
        assert sum(piece["tokens"] for piece in row["pieces"]) == row["tokens"] == 6_001
        assert row["cut"] == max(0, 6_001 - length)
        assert any(piece["cut"] for piece in row["pieces"]) == (length < 6_001)
        assert len(row["pieces"]) < 600
        assert all(piece["text"] in (None, "é", "<|im_end|>") for piece in row["pieces"] if piece["tokens"] != 1)


def test_what_a_session_would_fail_with_is_said(base, tmp_path):
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text(UNSTABLE)
    file = write(tmp_path / "rows", FileFormat.JSONL, ROWS[RowFormat.MESSAGES])
    found = preview_tokens(asked(model, file, RowFormat.MESSAGES, FileFormat.JSONL))
    assert found["fault"].startswith("row 1: the chat template renders an earlier turn differently")


def test_findings_and_unused_keys_are_shown(base, tmp_path):
    """Guard: without `findings` in the reply, only the log of a session said what the rows teach besides answers."""
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text(THINKING)
    rows = [row | {"source": "web"} for row in ROWS[RowFormat.MESSAGES]]
    file = write(tmp_path / "rows", FileFormat.JSONL, rows)
    reply = preview_tokens(asked(model, file, RowFormat.MESSAGES, FileFormat.JSONL))
    found = preview(file, RowFormat.AUTO, None, sequence_len=64, train_on_inputs=False)
    shown = with_tokens(found, TokenLook(lengths=reply["lengths"], findings=reply["findings"]), 64)
    assert shown.unused == ("source",)
    assert ["begins the last answer" in finding for finding in shown.findings] == [True]
    write(file, FileFormat.JSONL, [rows[0], rows[1] | {"label": False}])
    assert preview_tokens(asked(model, file, RowFormat.MESSAGES, FileFormat.JSONL))["fault"].startswith(
        "line 2: has label False"
    )


def test_the_process_around_it(base, tmp_path):
    """From the catalog to the page's values, and back with a reason where a model is hostile, foreign or not here.

    Guards: without the time limit the endless template was waited for; without the sandbox, the process and its bare
    environment, the third template printed what only the server may know.
    """
    looks = TokenLooks(FolderAndHubCatalog([tmp_path, base], frozenset(), offline=True), offline=True)
    file = write(tmp_path / "rows", FileFormat.JSONL, ROWS[RowFormat.MESSAGES])
    how = {"sequence_len": 30, "train_on_inputs": False}

    def seen(model: str, through: TokenLooks = looks):
        return through.of(model, file, RowFormat.MESSAGES, FileFormat.JSONL, **how)

    found = seen(str(base))
    plain = preview_tokens(asked(base, file, RowFormat.MESSAGES, FileFormat.JSONL, sequence_len=30))
    assert [p.text for p in found.shown[0].pieces] == [p["text"] for p in plain["shown"][0]["pieces"]]
    shown = with_tokens(preview(file, RowFormat.AUTO, None, **how), found, 30)
    assert (shown.exact, shown.truncated, shown.measured) == (True, 1, 2)
    assert seen("org/unknown").away.startswith(NOT_HERE)
    assert "TRAINHOP_ALLOWED_FOLDERS" in seen("/etc").away

    model = shutil.copytree(base, tmp_path / "model")
    template = model / "chat_template.jinja"
    for hostile, words in [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not finish within 4 s"),
        ("{{ 'x' * 9999999999 }}", "refuses a row of the dataset: MemoryError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses a row of the dataset"),
    ]:
        template.write_text(hostile)
        quick = TokenLooks(FolderAndHubCatalog([tmp_path], frozenset(), offline=True), offline=True, cpu_s=4)
        answer = seen(str(model), quick if "range" in hostile else looks)
        assert words in answer.away + answer.fault
        assert answer.shown == ()


def test_by_turn_only_the_completion_of_message_lists_is_shown_as_learnt(tmp_path):
    """Guard: without `given` in the preview the examples in a prompt were marked like the answer."""
    rows = [{"system": "be brief", "prompt": TURNS[1:4], "completion": TURNS[4:]}]
    file = write(tmp_path / "upload", FileFormat.JSONL, rows)
    found = preview(file, RowFormat.AUTO, None, sequence_len=64, train_on_inputs=False)
    assert [(turn.role, turn.trained) for turn in found.shown[0]] == [
        ("system", False),
        ("user", False),
        ("assistant", False),
        ("user", False),
        ("assistant", True),
    ]
