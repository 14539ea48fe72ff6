"""Rows that are held out of training against the training rows: files of their own, and the split of a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.trust.english import English
from worker.shared.data_checks.held_out import check_split, compare
from worker.shared.data_checks.leaks import PROMPTS, TASKS
from worker.shared.data_checks.runner import Data
from worker.shared.dataset_spec import RowFormat

MAIL = "Write to ann.lee@posteo.de about the key of the lower store room, please."


def rows_of(count: int, seed: int = 7) -> list[dict]:
    english = English(seed)
    rows = (english.row(sentences=(3, 4)) for _ in range(2 * count))
    return [row for row in rows if len(row["messages"]) == 2][:count]


def asked(row: dict) -> dict:
    """The row as a prompt, with nothing for its answer."""
    return {"messages": [turn if turn["role"] != "assistant" else turn | {"content": "-"} for turn in row["messages"]]}


@pytest.fixture
def data(tmp_path: Path):
    def writing(rows: list[dict], name: str, row_format: RowFormat = RowFormat.AUTO) -> Data:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Data(path=path, row_format=row_format, rows=len(rows))

    return writing


def test_a_prompt_is_found_in_the_training_rows_whatever_its_answer(data) -> None:
    train, fresh = rows_of(40), rows_of(40, seed=8)
    train[5]["messages"][0]["content"] = MAIL
    prompts = [asked(row) for row in [*fresh[:30], train[5]]]
    report = compare([data(train, "train")], data(prompts, "prompts"), PROMPTS)
    leak, cut = report.findings
    assert (leak.check, leak.level, leak.lines, leak.other_lines) == ("leak", "stop", (31,), (6,))
    assert leak.words == "1 of 31 prompts (3.2 %) have the same text or the same prompt as a training row"
    assert leak.advice == "Remove them from the prompts, or the evaluation measures memory."
    assert leak.samples[0].line == 31
    assert "[e-mail address]" in leak.samples[0].text
    assert "posteo" not in json.dumps(report.to_json())
    assert (cut.check, cut.level, cut.lines) == ("split", "warn", (6,))
    assert (report.rows, report.checked, report.not_checked) == (31, 31, ())


@pytest.mark.parametrize(("count", "level"), [(30, "stop"), (60, "warn")])
def test_a_near_leak_is_a_warning_up_to_two_per_cent(data, count: int, level: str) -> None:
    train, prompts = rows_of(20), rows_of(count, seed=8)
    answer = train[3]["messages"][-1]["content"]
    prompts[2]["messages"] = [{"role": "user", "content": "And so?"}, {"role": "assistant", "content": answer}]
    found = compare([data(train, "train")], data(prompts, "prompts"), PROMPTS).findings
    assert [(f.check, f.level, f.lines) for f in found] == [("leak", level, (3,)), ("split", "warn", (4,))][::1]


def test_of_several_training_files_the_finding_names_the_one(data) -> None:
    """Guard: without `begin_file` the lines of a leak were those of an unknown file."""
    one, other = rows_of(20), rows_of(20, seed=8)
    report = compare([data(one, "one"), data(other, "other")], data([asked(one[1]), asked(other[7])], "p"), PROMPTS)
    leaks = [(f.words[-22:], f.level, f.lines, f.other_lines) for f in report.findings if f.check == "leak"]
    assert leaks == [
        ("training row of dataset 1"[-22:], "stop", (1,), (2,)),
        ("training row of dataset 2"[-22:], "stop", (2,), (8,)),
    ]


def test_the_answers_of_prompts_are_no_shift(data) -> None:
    """Guard: with the length of answers compared, every file of prompts was unlike the training rows."""
    train, prompts = rows_of(60), [asked(row) for row in rows_of(60, seed=8)]
    assert compare([data(train, "train")], data(prompts, "prompts"), PROMPTS).findings == ()
    for row in prompts:
        row["messages"][0]["content"] *= 9
    (shift,) = compare([data(train, "train")], data(prompts, "prompts"), PROMPTS).findings
    assert (shift.check, shift.level) == ("shift", "warn")
    assert shift.words.startswith("the prompts differ from the training rows, most in the length of prompts")


def test_a_task_that_is_trained_on_is_a_stop(data) -> None:
    """Tasks may be unlike the rows. Guards: without `asked_key`, only rows with an answer had a prompt to compare;
    without `earlier_prompt_keys`, the first question of a conversation was not one that is trained on.
    """
    train = rows_of(30)
    question = train[4]["messages"][0]["content"]
    train[4]["messages"] += train.pop()["messages"]
    tasks = [{"prompt": f"{n}?", "check": {"type": "number", "value": n}} for n in range(30)]
    tasks.append({"prompt": question, "check": {"type": "exact", "answer": "x"}})
    report = compare([data(train, "train")], data(tasks, "tasks", RowFormat.TASK), TASKS)
    assert [(f.check, f.level, f.lines, f.other_lines) for f in report.findings] == [("leak", "stop", (31,), (5,))]
    assert report.findings[0].words.startswith("1 of 31 tasks (3.2 %) have the same text or the same prompt")


def test_a_sample_of_very_large_files_is_said(data) -> None:
    report = compare([data(rows_of(30), "train")], data(rows_of(5, seed=8), "prompts"), max_rows=10)
    assert [each.reason for each in report.not_checked] == ["only a sample of the training rows was compared"]


def test_the_split_is_shown_as_mended(data) -> None:
    """Half of the rows are copies, so single rows would leak. Guard: with `split` for `split_groups`, copies of
    held-out rows are left and become warnings."""
    rows = rows_of(40)
    report = check_split([data([*rows, *rows[:20]], "rows")], 12, 3)
    (mended,) = report.findings
    assert (mended.check, mended.level, mended.count, mended.total) == ("split", "list", 40, 60)
    assert mended.words.startswith("40 of 60 rows are copies of each other, in 20 groups, and the split keeps each")
    assert mended.words.endswith("if single rows were drawn, and 0 have one now")
    assert mended.lines
    assert all(abs(line - other) == 40 for line, other in zip(mended.lines, mended.other_lines, strict=True))
    assert (report.rows, report.checked) == (12, 12)


def test_what_the_split_cannot_mend_is_a_warning(data) -> None:
    """One group of all rows has to be cut. No job is refused for it, because its author made no split."""
    report = check_split([data(rows_of(1) * 12, "rows")], 3, 3)
    assert [(f.check, f.level, f.count) for f in report.findings] == [("leak", "warn", 3), ("split", "list", 12)]
    assert report.findings[1].words.endswith("and 3 have one now")


def test_a_split_without_copies_says_nothing_and_a_huge_one_is_not_checked(data) -> None:
    rows = data(rows_of(20), "rows")
    assert check_split([rows], 4, 3).findings == ()
    assert [each.reason for each in check_split([rows], 4, 3, max_rows=19).not_checked] == ["the files are too large"]


def test_one_group_is_one_group(data) -> None:
    """Guard: without `many` it was "in 1 groups"."""
    rows = rows_of(10)
    (mended,) = check_split([data([*rows, rows[0]], "rows")], 3, 5).findings
    assert mended.words.startswith("2 of 11 rows are copies of each other, in 1 group, and the split keeps each")
