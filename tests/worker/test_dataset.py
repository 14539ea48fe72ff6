"""Every accepted row format and file format, and each fault with its sentence and line."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from worker.shared import dataset_containers
from worker.shared.dataset_files import DatasetError, DatasetInfo, Message, Row, inspect, read_rows
from worker.shared.dataset_spec import FileFormat, RowFormat

CHAT = Row(messages=(Message("user", "q"), Message("assistant", "a")))
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
FORMATS = [
    ({"messages": TURNS}, RowFormat.MESSAGES, CHAT),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        RowFormat.SHAREGPT,
        CHAT,
    ),
    ({"prompt": TURNS[:1], "completion": TURNS[1:]}, RowFormat.PROMPT_COMPLETION, Row(CHAT.messages, given=1)),
    ({"prompt": "q", "completion": "a"}, RowFormat.PROMPT_COMPLETION, Row(prompt="q", text="a")),
    ({"instruction": "q", "input": "", "output": "a"}, RowFormat.ALPACA, CHAT),
    (
        {"instruction": "q", "input": "x", "output": "a"},
        RowFormat.ALPACA,
        Row(messages=(Message("user", "q\n\nx"), Message("assistant", "a"))),
    ),
    ({"text": "t"}, RowFormat.TEXT, Row(text="t")),
    (
        {"system": "s", "messages": TURNS, "tools": "[]"},
        RowFormat.MESSAGES,
        Row((Message("system", "s"), *CHAT.messages)),
    ),
    (
        {"system": "s", "prompt": TURNS, "completion": TURNS[1:]},
        RowFormat.PROMPT_COMPLETION,
        Row((Message("system", "s"), *CHAT.messages, CHAT.messages[1]), given=3),
    ),
]


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(("record", "kind", "row"), FORMATS)
def test_formats(tmp_path, container, record, kind, row):
    path = tmp_path / "upload"
    if container == "jsonl":
        path.write_text(json.dumps(record) + "\n\n" + json.dumps(record), encoding="utf-8")
    elif container == "json":
        path.write_text(json.dumps([record, record], indent=1), encoding="utf-8")
    else:
        parquet.write_table(pa.Table.from_pylist([record, record]), path)
    expected = FileFormat.PARQUET if container == "parquet" else FileFormat.JSONL
    assert inspect(path) == DatasetInfo(rows=2, type=kind, file_format=expected)
    assert list(read_rows(path)) == [row, row]


def test_csv_and_byte_order_mark(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(b'\xef\xbb\xbfprompt,completion\nq,"a, b\nc"\n')
    assert inspect(path) == DatasetInfo(1, RowFormat.PROMPT_COMPLETION, FileFormat.CSV)
    assert list(read_rows(path)) == [Row(prompt="q", text="a, b\nc")]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "é"}).encode())
    assert list(read_rows(path)) == [Row(text="é")]


SYSTEM = {"role": "system", "content": "other"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
GOOD = json.dumps({"messages": TURNS}) + "\n"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", None, "the file is empty"),
        ("\n\n", None, "the file is empty"),
        ("[]", None, "the file has no rows"),
        ("text\n", None, "the file has no rows"),
        (GOOD + "{oops\n", 2, "is not valid JSON"),
        (GOOD + "[1]\n", 2, "must be a JSON object, not list"),
        ('[{"text": "a"},\n {"text": }]', 2, "is not valid JSON"),
        ('[{"text": "a"}', 1, "is not valid JSON"),
        (GOOD + json.dumps({"messages": TURNS[:1]}), 2, "has no assistant turn"),
        (GOOD + json.dumps({"other": 1}), 2, "column 'messages' is missing"),
        (GOOD + json.dumps({"text": "x"}), 2, "is a text row in a messages dataset"),
        (json.dumps({"foo": 1, "bar": 2}), 1, r"unknown row format with keys \['bar', 'foo'\]; accepted are: messages"),
        (json.dumps({"messages": "hi"}), 1, "'messages' must be a list"),
        (json.dumps({"messages": [{"role": "bot", "content": "x"}]}), 1, "unknown role 'bot'"),
        (json.dumps({"messages": [{"role": "user"}]}), 1, "needs the strings 'role' and 'content'"),
        (json.dumps({"conversations": [{"from": "bot", "value": "x"}]}), 1, "unknown from 'bot'"),
        (json.dumps({"messages": [*TURNS, CALL | {"role": "user"}]}), 1, "has the role 'user' and 'tool_calls'"),
        (
            json.dumps({"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]}),
            1,
            "has weight 0.5, and a turn is trained on",
        ),
        (
            json.dumps({"system": "s", "messages": [SYSTEM, *TURNS]}),
            1,
            "both a 'system' column and another system turn",
        ),
        (json.dumps({"system": 5, "messages": TURNS}), 1, "'system' must be a string, not int"),
        (json.dumps({"prompt": TURNS, "completion": TURNS[:1]}), 1, "has no assistant turn to learn from"),
        (json.dumps({"text": "  "}), 1, "'text' is empty"),
        (json.dumps({"text": 5}), 1, "'text' must be a string, not int"),
        (json.dumps({"prompt": "a", "completion": TURNS}), 1, "must both be strings or both be lists"),
        (
            json.dumps({"prompt": "a", "completion": "b"})
            + "\n"
            + json.dumps({"prompt": TURNS[:1], "completion": TURNS[1:]}),
            2,
            "mixes plain strings and message lists",
        ),
        ("text,more\na,b,c\n", 2, "has more fields than the header"),
        ('text\n"a\n', 2, "is not valid CSV"),
        ("instruction,output\nq,\n", 2, "'output' is empty"),
        ("instruction,output\nq\n", 2, "column 'output' is missing"),
    ],
)
def test_faults_name_line_and_remedy(tmp_path, content, line, words):
    """Guard: without `refuse_unheeded` and `with_columns` calls, tools, weights and a second system were lost
    unsaid."""
    path = tmp_path / "upload"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=words) as caught:
        inspect(path)
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_wrong_encoding_and_endless_lines(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(GOOD.encode() + '{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DatasetError, match="line 2: is not UTF-8"):
        inspect(path)
    path.write_bytes(b'{"text": "' + b"x" * dataset_containers.MAX_LINE_BYTES)
    with pytest.raises(DatasetError, match="line 1: is longer than 16 MiB"):
        inspect(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match="is not a readable Parquet file"):
        inspect(path)


def test_deep_nesting_is_refused(tmp_path):
    path = tmp_path / "upload"
    path.write_text('{"text": ' + "[" * 100_000, encoding="utf-8")
    with pytest.raises(DatasetError, match="is not valid JSON"):
        inspect(path)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('[{"text": "a"}]\n{"text": "b"}\n', 2, "text after the end of the array"),
        ('[{"text": "a"}] [{"text": "b"}]', 1, "text after the end of the array"),
        ('[{"text": "a"}\n {"text": "b"}]', 2, "a comma is missing between two rows"),
        ('[{"text": "a"},,{"text": "b"}]', 1, "is not valid JSON"),
        ('[{"text": "a"},\n]', 2, "is not valid JSON"),
        ('[,{"text": "a"}]', 1, "is not valid JSON"),
        ('[{"text": "a"}\n', 2, "the array is not closed"),
    ],
)
def test_an_array_is_read_whole_or_not_at_all(tmp_path, content, line, words):
    """Guards: with commas skipped as blanks, and without a look behind the `]`, all of these but the last were read as
    one row or two, and what came after the array was never trained on.
    """
    path = tmp_path / "upload"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=words) as caught:
        inspect(path)
    assert caught.value.line == line


def test_blank_lines_before_and_after_an_array(tmp_path):
    """Guard: with the first line in place of the first that is not blank, the array was refused as a row."""
    path = tmp_path / "upload"
    path.write_text('\n \n[{"text": "a"},\n{"text": "b"}]\n\n', encoding="utf-8")
    assert inspect(path).rows == 2


@pytest.mark.parametrize("array", [False, True])
def test_a_number_of_thousands_of_digits_is_a_fault_of_its_line(tmp_path, array):
    """Guard: without `ValueError` Python's own limit came through, and the upload was answered with 500."""
    path = tmp_path / "upload"
    rows = ['{"text": "a"}', f'{{"text": "a", "n": {"9" * 5000}}}']
    path.write_text("[" + ",\n".join(rows) + "]" if array else "\n".join(rows), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"line 2: is not valid JSON \(a number of too many digits\)"):
        inspect(path)


HALF = "\ud83d"


@pytest.mark.parametrize(
    "record",
    [
        {"text": HALF},
        {"prompt": HALF, "completion": "a"},
        {"prompt": "q", "completion": HALF + "a"},
        {"instruction": HALF, "output": "a"},
        {"messages": [TURNS[0], {"role": "assistant", "content": HALF}]},
    ],
)
def test_half_a_character_is_a_fault_of_its_line(tmp_path, record):
    """Guard: without the look at each row's texts the file passed, and every session of its job failed in the
    tokenizer."""
    path = tmp_path / "upload"
    path.write_text("\n" + json.dumps(record), encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2: has an unpaired surrogate"):
        inspect(path)
    path.write_text(json.dumps({"text": "a whole one: \U0001f600"}), encoding="utf-8")
    assert inspect(path).rows == 1
