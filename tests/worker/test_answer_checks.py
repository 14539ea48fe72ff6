"""Checks of answers by a program: what passes, what a check may look like, and that none takes long."""

import json
import time
from pathlib import Path

import pytest

from worker.shared.answer_checks import CheckError, compiled, passes
from worker.shared.dataset_files import DatasetError, inspect
from worker.shared.dataset_spec import FileFormat, RowFormat
from worker.shared.evaluation_spec import MEASURES
from worker.shared.evaluation_units import FIXED
from worker.shared.tasks import fixed_prompts, fixed_sha256, read_tasks

FENCED = '```json\n{"a": 1}\n```'
OBJECT = {"type": "json_schema", "schema": {"type": "object", "required": ["a"]}}
KM = {"type": "number", "value": 42.195, "unit": ["km", "kilometres"], "tolerance": 0.2}


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"type": "exact", "answer": "Paris"}, ["Paris", " Paris\n"], ["paris", "Paris.", ""]),
        ({"type": "exact", "answer": ["Köln", "Cologne"], "ignore_case": True}, ["Ko\u0308ln", "COLOGNE"], ["Bonn"]),
        ({"type": "regex", "pattern": "\\d{4}-\\d\\d"}, ["In 2020-05."], ["In 20-05."]),
        ({"type": "regex", "pattern": "(?i)^yes\\b"}, ["YES, it is"], ["Oh yes", "yesterday"]),
        (OBJECT, ['{"a": 1}', FENCED, ' {"a":\n1} '], ['{"b": 1}', "It is {}", '{"a": NaN}', "[" * 9_000, "9" * 9_000]),
        (
            KM,
            ["It is 42.2 km.", "42 kilometres", "5 km, so 42.195km"],
            ["42.2", "42.2 kmh", "42.5 km", "42.2 km, 5 km"],
        ),
        ({"type": "number", "value": 0.3, "tolerance": 0.1}, ["0.4", "so 9 and .2 and 0.2"], ["0.41", "none", ""]),
        ({"type": "number", "value": -1234.5}, ["-1,234.5", "\u22121234.5", "-1.2345e3"], ["1234.5", "-1,234.50001"]),
        ({"type": "number", "value": 200, "relative_tolerance": 0.01}, ["198", "202.0"], ["197.9", "1e999"]),
        ({"type": "number", "value": 21, "unit": "°C"}, ["21 °C", "21°C"], ["21 °F", "21"]),
    ],
)
def test_an_answer_passes_or_not(check, good, bad):
    assert [answer for answer in good if not passes(check, answer)] == []
    assert [answer for answer in bad if passes(check, answer)] == []


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("exact", "must be an object"),
        ({"type": "unit_test"}, "needs a type: exact, regex, json_schema or number"),
        ({"type": "exact", "answer": []}, "'exact' of 'check'|'answer' of 'check'"),
        ({"type": "exact", "answer": "x", "case": True}, "'case' of 'check' is not a known key"),
        ({"type": "regex"}, "'pattern' of 'check' is missing"),
        ({"type": "regex", "pattern": "x" * 1_001}, "'pattern' of 'check' must have at most 1000 characters"),
        ({"type": "number", "value": "many"}, "'value' of 'check' must be a number"),
        ({"type": "number", "value": 1, "tolerance": -1}, "'tolerance' of 'check' must be at least 0"),
        ({"type": "json_schema", "schema": {"enum": ["x" * 20_000]}}, "has more than 16 KiB"),
        ({"type": "json_schema", "schema": {"enum": [0] * 3_000}}, "has more than 2000 values"),
        ({"type": "regex", "pattern": "("}, r"the pattern '\(' cannot be used"),
        ({"type": "regex", "pattern": "(?=a)b"}, "look around or refer back"),
        ({"type": "regex", "pattern": "x{1000}{1000}"}, "it may be too large"),
        ({"type": "json_schema", "schema": {"type": "text"}}, "the schema is not valid"),
        ({"type": "json_schema", "schema": {"$ref": "http://127.0.0.1:9/x.json"}}, "the schema is not valid"),
        ({"type": "json_schema", "schema": {"patternProperties": {"(?=a)": {}}}}, "the schema is not valid"),
    ],
)
def test_a_check_that_cannot_be_used_is_refused_in_words(check, words):
    with pytest.raises(CheckError, match=words):
        compiled(check)


def test_a_schema_reads_no_other_document(tmp_path):
    """Guard: without `offline`, a schema made the server read any file of its computer, and any address."""
    (tmp_path / "other.json").write_text('{"type": "object"}')
    with pytest.raises(CheckError, match="Retrieval is disabled"):
        compiled({"type": "json_schema", "schema": {"$ref": (tmp_path / "other.json").as_uri()}})


def test_no_pattern_takes_long():
    """Guard: Python's own engine takes years for each of these."""
    answer = "a" * 20_000 + "b"
    began = time.process_time()
    for pattern in ("^(a+)+$", "^(a|aa)+$", "^(a|a)*$", "(a*)*c", "^(.*?,){12}P"):
        assert not passes({"type": "regex", "pattern": pattern}, answer)
        schema = {"type": "object", "additionalProperties": {"pattern": pattern}}
        assert not passes({"type": "json_schema", "schema": schema}, json.dumps({"x": answer}))
    assert time.process_time() - began < 5


def test_a_file_of_tasks_is_read_and_faults_have_their_line(tmp_path):
    good = {"prompt": "2 + 2?", "check": {"type": "number", "value": 4}}
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Yes?"}]
    path = tmp_path / "tasks.jsonl"

    def write(*records):
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    write(good, {"messages": turns, "check": {"type": "regex", "pattern": "yes"}})
    found = list(read_tasks(path, FileFormat.JSONL))
    assert [(task.line, task.is_text, len(task.turns)) for task in found] == [(1, True, 1), (2, False, 2)]
    assert inspect(path, RowFormat.TASK).rows == 2
    for bad, words in (
        ({"prompt": "x"}, "line 2: column 'check' is missing"),
        ({"check": good["check"]}, "line 2: a task needs either 'prompt' or 'messages'"),
        (good | {"messages": turns}, "line 2: a task needs either 'prompt' or 'messages'"),
        (good | {"prompt": " "}, "line 2: 'prompt' is empty"),
        (good | {"check": {"type": "guess"}}, "line 2: 'check' needs a type"),
        ({"messages": [{"role": "assistant", "content": "x"}], "check": good["check"]}, "line 2: 'messages' of a task"),
    ):
        write(good, bad)
        with pytest.raises(DatasetError, match=words):
            list(read_tasks(path, FileFormat.JSONL))
        with pytest.raises(DatasetError, match=words):
            inspect(path, RowFormat.TASK)


def test_the_fixed_prompts_belong_to_the_number_of_what_is_measured():
    """A running evaluation must not get other prompts. Whoever changes the file raises `MEASURES`, and this hash."""
    assert MEASURES == 2
    assert fixed_sha256() == "53f77e5fc55bce066b4869caaa9024ced7e51394c6505822efd1b3af082ee905"
    assert len(fixed_prompts()) == len({task.turns for task in fixed_prompts()}) == FIXED


GOOD = (
    "- a\n- b\n- c", "- a\n- b\n- c\n- d", "- a b\n- c", "1. a\n2. b\n3. c\n4. d\n5. e", "1. a\n2. b\n3. c",
    '{"name":"A","age":3}', '```json\n{"city":"T","country":"J"}\n```', '["a","b","c","d"]', "[2,3,5]",
    '{"answer":true}', '{"steps":["a","b","c"]}', '{"title":"x","tags":["a","b"]}', "The sea is wide.",
    "Cats purr. Cats sleep.", "Warm air rises. It cools.", "a forest is green.", "spring, summer",
    "she was a physicist.", "HELLO FRIEND!", "COLD IS THE OPPOSITE.", "A vehicle with two wheels.",
    "They fly to find food.", "The moon is very bright.", "Cold and white", "Green", "Yes.", "no",
    "Certainly! A library lends books.", "Sun. Warm. That is all.", '"Bread that smiles"',
    "Trains go.\n***\nTrains stop.", "The river meets a Stone.", "<<Leaves>>", "It is big. It is loud. It is full.",
    "1, 2, 3, 4, 5", "The train leaves at noon.", "L-a-m-p", "2020-05-17", "There are 120 minutes in two hours.",
    "What do you like to do?",
)  # fmt: skip
BAD = (
    "a, b, c", "- a\n- b\n- c", "- a\n- b\n- c", "1. a 2. b", "1. a\n2. b", '{"name":"A"}',
    '{"city":"T","country":"J","x":1}', '["a","b","c"]', '[2,3,"5"]', '{"answer":"true"}', '{"steps":["a","b"]}',
    '{"title":"x","tags":["a"]}', "The sea, wide.", "Cats, dogs.", "", "A forest", "Spring", "Marie", "Hello", "Cold",
    "a b c d e f g h i j k", "a " * 16, "The moon", "Cold", "It is green", "Yes, it is", "maybe", "A library",
    "That is all, folks", "Bread", "Trains go. Trains stop.", "The river", "Leaves", "One. Two.", "1 2 3 4 5",
    "The train left.", "lamp", "17.05.2020", "There are 60 minutes", "I see. What? Why?",
)  # fmt: skip


def test_each_fixed_instruction_tells_answers_apart():
    checked = [task for task in fixed_prompts() if task.check is not None]
    for task, good, bad in zip(checked, GOOD, BAD, strict=True):
        assert task.check is not None
        assert passes(task.check, good), task.line
        assert not passes(task.check, bad), task.line


def test_the_tasks_of_the_docs_can_be_used(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (tmp_path / "tasks.jsonl").write_text(page.partition("```text\n")[2].partition("```")[0], encoding="utf-8")
    found = list(read_tasks(tmp_path / "tasks.jsonl", FileFormat.JSONL))
    assert [compiled(task.check)(answer) for task, answer in zip(found, DOCUMENTED, strict=True)] == [True] * 4


DOCUMENTED = ("Paris.", "2020-05-17", '{"name": "Tom"}', "About 42.2 kilometres.")
