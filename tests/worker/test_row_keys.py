"""Keys of rows that no format reads: what changes the lesson is refused with its line, and the rest is named."""

import json

import pytest

from worker.shared.dataset_files import DatasetError, Message, Row, examine, inspect, read_rows
from worker.shared.dataset_spec import RowFormat

ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CHAT = {"messages": [ASK, ANSWER]}
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
    (
        turn(reasoning_content="well"),
        "a turn in 'messages' has 'reasoning_content', a thought that would not be taught",
    ),
    (turn(thinking="well"), "has 'thinking', a thought"),
    (CHAT | {"reasoning": "well"}, "has 'reasoning', a thought"),
    (turn(train=False), "a turn in 'messages' has train False, but whole rows are taught; put text"),
    (turn(trainOnTurn=False), "has trainOnTurn False"),
    (turn(loss=0), "has loss 0"),
    (turn(weight=0.5), "has weight 0.5, but all assistant turns have equal weight"),
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
    (CHAT | {"tools": [{"name": "f"}]}, "has 'tools', which are not supported; remove the column or the row"),
    (CHAT | {"documents": [{"text": "d"}]}, "has 'documents', which are not supported"),
    (turn(function_call={"name": "f"}), "a turn in 'messages' calls a tool, which is not supported"),
    (CHAT | {"system_prompt": "be kind"}, "has 'system_prompt', which is not read there; name it 'system'"),
    (PLAIN | {"system": "be kind"}, "has 'system', which is not read there"),
    ({"text": "t", "system": "be kind"}, "has 'system'"),
    (CHAT | {"history": [["q", "a"]]}, "has 'history', text that would not be taught"),
    (ALPACA | {"context": "c"}, "has 'context', text that would not be taught"),
    (ALPACA | {"history": [["q"]]}, r"'history' must be a list of \[instruction, output\] pairs"),
    (ALPACA | {"history": "q"}, "'history' must be a list"),
    (turn(mood_to_learn="x"), "a turn in 'messages' has 'mood_to_learn', which no format reads"),
    ({"conversations": [SHARE["conversations"][0], {"from": "gpt", "value": "a", "weight": 0}]}, "has weight 0"),
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
    assert ";" in str(caught.value) or "must be" in str(caught.value)


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
    (turn(train=True, weight=1), ("messages[].train", "messages[].weight")),
    ({"messages": [ASK | {"train": False, "weight": 0}, ANSWER]}, ("messages[].train", "messages[].weight")),
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
    path = written(tmp_path, turn(train=False), CHAT | {"images": ["a"]})
    assert list(read_rows(path, all_keys=False)) == [Row((Message("user", "q"), Message("assistant", "a")))] * 2
    path = written(tmp_path, ALPACA | {"history": [["1", "2"]]})
    assert len(next(read_rows(path, RowFormat.ALPACA, all_keys=False)).messages) == 2
