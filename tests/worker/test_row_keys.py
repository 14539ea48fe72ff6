"""Keys of rows that no format reads: what changes the lesson is refused with its line, and the rest is named."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from worker.shared.dataset_files import DatasetError, Message, Row, examine, inspect, read_rows
from worker.shared.dataset_spec import RowFormat

ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CHAT = {"messages": [ASK, ANSWER]}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "Łódź", "n": None}}}
CALL_TEXT = CALL | {"function": {"name": "f", "arguments": '{"city": "Łódź", "n": null}'}}
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ALPACA = {"instruction": "q", "output": "a"}
PLAIN = {"prompt": "q", "completion": "a"}
SHARE = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


def written(tmp_path, *records):
    path = tmp_path / "upload"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def turn(**more):
    return {"messages": [ASK, ANSWER | more]}


REFUSED = [
    (turn(thinking_blocks=["well"]), "a turn in 'messages' has 'thinking_blocks', a thought that would not be taught"),
    (turn(thoughts="well"), "has 'thoughts', a thought that would not be taught; name it 'reasoning_content'"),
    (CHAT | {"reasoning": "well"}, "has 'reasoning', a thought"),
    (turn(reasoning_content=["well"]), "a turn in 'messages' has 'reasoning_content', which must be a string"),
    (turn(reasoning="a", thinking="b"), "has 'reasoning' and 'thinking' with different thoughts"),
    ({"messages": [ASK | {"thinking": "well"}, ANSWER]}, "has the role 'user' and 'thinking', which only an assistant"),
    (turn(train=0.3), "has train 0.3, and a turn is trained on or not: true or false; say one of them"),
    (turn(train_detail=[{"begin_offset": 0}]), "has train_detail .*, which is not read there; say 'train': false"),
    (turn(trainOnTurn=False), "has trainOnTurn False"),
    (turn(loss=0), "has loss 0"),
    (turn(weight=0.5), "has weight 0.5, and a turn is trained on or not: 0 or 1; say 0 or 1"),
    (turn(weight=2), "has weight 2, and"),
    (turn(weight=0, train=True), "has train and weight, which contradict each other"),
    ({"prompt": [ASK | {"train": True}], "completion": [ANSWER]}, "has a turn in 'prompt' that asks to be trained on"),
    (CHAT | {"sample_weight": 3}, "has sample_weight 3"),
    (CHAT | {"loss_mask": [0, 1]}, "has 'loss_mask', but the format of a row decides"),
    (turn(masked=True), "has 'masked'"),
    (PLAIN | {"label": False}, "has label False, but every answer is taught as a good one"),
    (PLAIN | {"label": "false"}, "has label false"),
    (CHAT | {"is_correct": 0}, "has is_correct 0"),
    (CHAT | {"wrong": True}, "has wrong True"),
    (CHAT | {"images": ["a.png"]}, "has 'images', which is not text"),
    (turn(image_url="a.png"), "has 'image_url'"),
    (CHAT | {"audio": {"bytes": "x"}}, "has 'audio'"),
    (CHAT | {"chat_template_kwargs": {"enable_thinking": False}}, "would not reach the chat template"),
    (CHAT | {"enable_thinking": True}, "has 'enable_thinking'"),
    (PLAIN | {"tools": [{"name": "f"}]}, "has 'tools', which is not read there; name the schemas of tools 'tools'"),
    (CHAT | {"tools": "{oops"}, "'tools' is not valid JSON; write it"),
    (CHAT | {"tools": {"name": "f"}}, "'tools' must be a list of at most 1000 schemas"),
    (CHAT | {"tools": [{"type": "function"}]}, "an entry of 'tools' must be the schema of a function"),
    (CHAT | {"tools": [{"name": "f"}], "functions": [{"name": "f"}]}, "has both 'tools' and 'functions'"),
    (
        turn(tool_calls=[{"function": {"name": "f", "arguments": "{x"}}]),
        "the 'arguments' of the call of f that are not",
    ),
    (turn(tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]), "calls f with arguments that are not a JSON"),
    (turn(tool_calls=[{"function": {"arguments": {}}}]), "calls a tool without the 'name' of a function"),
    (turn(tool_calls=[{"type": "custom", "custom": {"name": "f"}}]), "calls a tool of type 'custom'; only functions"),
    (turn(tool_calls=[CALL["function"]] * 129), "has more than 128 tool calls"),
    (turn(tool_calls=[CALL], function_call=CALL["function"]), "has both 'tool_calls' and 'function_call'"),
    ({"messages": [ASK | {"tool_calls": [CALL]}, ANSWER]}, "has the role 'user' and 'tool_calls', which only"),
    ({"messages": [ASK, ANSWER, {"role": "tool", "content": "x", "name": 5}]}, "has 'name', which must be a string"),
    (turn(content=[{"type": "image_url", "image_url": "a.png"}]), "has a part of type 'image_url', which is not text"),
    (turn(content=[{"type": "text"}]), "has a part without 'text'"),
    (turn(content=[{"type": "text", "text": "a", "weight": 1}]), "has a part of text with 'weight', which no format"),
    (turn(content=None), "each turn in 'messages' needs the strings 'role' and 'content'"),
    (CHAT | {"documents": [{"text": "d"}]}, "has 'documents', which are not supported"),
    (CHAT | {"tool_calls": [CALL]}, "has 'tool_calls', a call that is not read there"),
    (CHAT | {"system_prompt": "be kind"}, "has 'system_prompt', which is not read there; name it 'system'"),
    (PLAIN | {"system": "be kind"}, "has 'system', which is not read there"),
    ({"text": "t", "system": "be kind"}, "has 'system'"),
    (CHAT | {"history": [["q", "a"]]}, "has 'history', text that would not be taught"),
    (ALPACA | {"context": "c"}, "has 'context', text that would not be taught"),
    (ALPACA | {"history": [["q"]]}, r"'history' must be a list of \[instruction, output\] pairs"),
    (ALPACA | {"history": "q"}, "'history' must be a list"),
    (turn(mood_to_learn="x"), "a turn in 'messages' has 'mood_to_learn', which no format reads"),
    ({"conversations": [SHARE["conversations"][0], {"from": "gpt", "value": "a", "weight": 0.1}]}, "has weight 0.1"),
    ({"prompt": [ASK | {"thought": "t"}], "completion": [ANSWER]}, "a turn in 'prompt' has 'thought'"),
]


@pytest.mark.parametrize(("record", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_keys_that_change_the_lesson_are_refused(tmp_path, record, words):
    """Guard: without `check_keys` every one of these was accepted, and what it says fell away unsaid."""
    plain = {key: value for key, value in record.items() if key in ("instruction", "output", "text")}
    path = written(tmp_path, plain or _without(record), record)
    with pytest.raises(DatasetError, match=words) as caught:
        inspect(path)
    assert caught.value.line == 2
    assert any(sign in str(caught.value) for sign in (";", "must be", "needs", "say 0 or 1"))


def _without(record):
    """The row without what is wrong with it."""
    if "conversations" in record:
        return SHARE
    if "messages" in record:
        return CHAT
    return PLAIN if isinstance(record["prompt"], str) else {"prompt": [ASK], "completion": [ANSWER]}


NAMED = [
    (CHAT | {"id": 7, "source": "web", "score": 0.5}, ("id", "source", "score")),
    (turn(id="m1", timestamp=5), ("messages[].id", "messages[].timestamp")),
    (turn(train=True, weight=1), ()),
    (
        turn(tool_calls=[CALL | {"index": 0}, {"function": CALL["function"] | {"strict": True}}]),
        ("messages[].tool_calls[].index", "messages[].tool_calls[].strict"),
    ),
    ({"messages": [ASK | {"train": False, "name": "ann"}, ANSWER]}, ("messages[].name",)),
    (PLAIN | {"accepted": True}, ("accepted",)),
    (ALPACA | {"text": "q a"}, ("text",)),
    (CHAT | {"prompt": "q"}, ("prompt",)),
    (SHARE | {"model_name": "m"}, ("model_name",)),
    (CHAT | {"tools": [], "images": None, "reasoning": "", "label": "null", "weight": float("nan")}, ()),
    (CHAT | {"x" * 1000: 1}, ("x" * 60,)),
    (CHAT | {f"k{n}": 1 for n in range(500)}, tuple(f"k{n}" for n in range(20))),
]


@pytest.mark.parametrize(("record", "names"), NAMED)
def test_keys_of_no_effect_are_named(tmp_path, record, names):
    path = written(tmp_path, record, record)
    assert inspect(path).unused == names
    assert [row.unused for row in examine(path)[1] if isinstance(row, Row)] == [names, names]


def test_history_of_alpaca_is_earlier_turns(tmp_path):
    """Guard: without `_history` the earlier turns of such a row fell away unsaid."""
    path = written(tmp_path, ALPACA | {"history": [["1", "2"], ["3", "4"]], "system": "s"}, ALPACA | {"history": []})
    contents = [[m.content for m in row.messages] for row in read_rows(path)]
    assert contents == [["s", "1", "2", "3", "4", "q", "a"], ["q", "a"]]


def test_a_running_job_reads_its_rows_as_it_began(tmp_path):
    """Guard: with the keys of old jobs checked, their next session failed for a row that the first one accepted."""
    rows = [turn(train=False), CHAT | {"images": ["a"]}, turn(reasoning="r", tool_calls=[CALL]), CHAT | {"tools": [1]}]
    path = written(tmp_path, *rows)
    assert list(read_rows(path, all_keys=False)) == [Row((Message("user", "q"), Message("assistant", "a")))] * 4
    path = written(tmp_path, ALPACA | {"history": [["1", "2"]]})
    assert len(next(read_rows(path, RowFormat.ALPACA, all_keys=False)).messages) == 2


SHARED = [
    (turn(content=[{"type": "text", "text": "a "}, "b"]), Message("assistant", "a b")),
    (turn(reasoning_content="well"), Message("assistant", "a", thought="well")),
    (turn(thinking="well", reasoning="well"), Message("assistant", "a", thought="well")),
    (turn(train="false"), Message("assistant", "a", train=False)),
    (turn(training=1, weight=1.0), Message("assistant", "a", train=True)),
    (turn(weight=0), Message("assistant", "a", train=False)),
    (turn(content=None, tool_calls=[CALL]), Message("assistant", "", calls=json.dumps([CALL], ensure_ascii=False))),
    (turn(tool_calls=[CALL_TEXT]), Message("assistant", "a", calls=json.dumps([CALL], ensure_ascii=False))),
    (turn(tool_calls=json.dumps([CALL])), Message("assistant", "a", calls=json.dumps([CALL], ensure_ascii=False))),
    (
        turn(content="", function_call={"name": "f", "arguments": ""}),
        Message("assistant", "", calls='[{"type": "function", "function": {"name": "f", "arguments": {}}}]'),
    ),
    (
        {
            "conversations": [
                SHARE["conversations"][0],
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            ]
        },
        Message("assistant", "", calls='[{"type": "function", "function": {"name": "f", "arguments": {}}}]'),
    ),
    (
        {"messages": [ASK, ANSWER, {"role": "function", "name": "f", "tool_call_id": "c1", "content": "4"}]},
        Message("tool", "4", name="f", call_id="c1"),
    ),
    ({"messages": [ANSWER, ASK | {"weight": 1}]}, Message("user", "q")),
    ({"messages": [ANSWER, ASK | {"train": True}]}, Message("user", "q", train=True)),
]


@pytest.mark.parametrize(("record", "last"), SHARED)
def test_what_a_turn_has_besides_its_text(tmp_path, record, last):
    """Guard: without `row_turns` thoughts, calls and weights are refused or lost. None is named as unused."""
    path = written(tmp_path, CHAT if "messages" in record else SHARE, record)
    _, row = read_rows(path)
    assert row.messages[-1] == last
    assert inspect(path).unused == ()


def test_tools_of_a_row(tmp_path):
    """As a list, as JSON text, and as bare functions of earlier files."""
    rows = [{"tools": [SCHEMA]}, {"tools": json.dumps([SCHEMA])}, {"functions": [SCHEMA["function"]]}, {"tools": []}]
    found = list(read_rows(written(tmp_path, *(CHAT | {"system": "s"} | row for row in rows))))
    assert [row.tools for row in found] == [json.dumps([SCHEMA])] * 3 + [""]
    assert {row.messages[0] for row in found} == {Message("system", "s")}


def test_rows_of_which_nothing_is_taught(tmp_path):
    """One such row is left out later. A file of them is refused."""
    assert inspect(written(tmp_path, turn(weight=0), CHAT)).rows == 2
    with pytest.raises(DatasetError, match="no row has a turn to train on, because each answer says"):
        inspect(written(tmp_path, turn(weight=0), turn(train=False)))


def test_arguments_of_other_rows_are_not_those_of_a_call(tmp_path):
    """Guard: in Parquet all objects of a column have the same keys, and calls were taught with the others' as null."""
    calls = [[{"function": {"name": "f", "arguments": given}}] for given in ({"city": "Rome"}, {"n": 3})]
    parquet.write_table(
        pa.Table.from_pylist([turn(content=None, tool_calls=each) for each in calls]), tmp_path / "rows"
    )
    found = [json.loads(row.messages[-1].calls)[0]["function"]["arguments"] for row in read_rows(tmp_path / "rows")]
    assert found == [{"city": "Rome"}, {"n": 3}]
