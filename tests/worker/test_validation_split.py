"""New jobs keep copies of a row on one side of the validation split; old jobs keep their split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trust.english import English
from benchmarks.trust.planted_set import KINDS
from worker.shared.copies_of_rows import groups, split_rows
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe
from worker.shared.row_split import split, split_groups
from worker.shared.rows import Message, Row


def as_row(row: dict) -> Row:
    return Row(messages=tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]))


def plain(count: int, seed: int = 5) -> list[dict]:
    english = English(seed)
    return [english.row() for _ in range(count)]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.data(), st.integers(0, 2**31 - 1))
def test_no_group_is_on_both_sides(numbers, data, seed):
    """Guard: with single rows held out, copies of them are trained on."""
    wanted = data.draw(st.integers(0, len(numbers) - 1))
    group = np.array(numbers)
    train, held_out = split_groups(group, wanted, seed)
    assert len(train) == len(numbers) - wanted
    assert len(held_out) <= wanted
    assert not set(train.tolist()) & set(held_out.tolist())
    smallest = min(numbers.count(n) for n in set(numbers))
    if wanted >= smallest:
        assert not set(group[train].tolist()) & set(group[held_out].tolist())


@given(st.integers(2, 60), st.data(), st.integers(0, 2**31 - 1))
def test_without_copies_it_is_the_old_split(rows, data, seed):
    wanted = data.draw(st.integers(0, rows - 1))
    new, old = split_groups(np.arange(rows), wanted, seed), split(rows, wanted, seed)
    assert [part.tolist() for part in new] == [part.tolist() for part in old]


def test_where_all_rows_are_copies_the_old_split_is_kept():
    new, old = split_groups(np.zeros(9, np.int64), 3, 1), split(9, 3, 1)
    assert [part.tolist() for part in new] == [part.tolist() for part in old]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("20 % edited", "30 % edited")])
def test_each_kind_of_copy_is_in_the_group_of_its_original(kind):
    maker, share = KINDS[kind]
    rows, english = plain(60), English(9)
    copies = [maker(english, row, share) for row in rows[:20]]
    found = groups([as_row(row) for row in [*rows, *copies]]).tolist()
    assert found[:60] == list(range(60))
    assert sum(found[60 + n] == n for n in range(20)) >= 19


def test_equal_prompts_and_questions_are_one_group():
    def turns(*texts):
        roles = ("user", "assistant") * 3
        return Row(messages=tuple(Message(role, text) for role, text in zip(roles, texts, strict=False)))

    rows = [
        turns("Where is it?", "It is in the hall."),
        turns("where  is it", "Nobody knows that."),
        turns("Hello", "Hi.", "Can you tell me the way there?", "Go left."),
        turns("Good day", "Hello.", "Can you tell me the way there", "Go right."),
        turns("Hello", "Hi.", "Thank you!", "You are welcome."),
        turns("Good day", "Hello.", "Thank you!", "Any time."),
        Row(text="Some Text"),
        Row(text="some text."),
        Row(text="图书馆在三楼，请把借来的书放回原来的架子上，谢谢大家的合作。"),
        Row(text="图书馆在二楼，请把借来的书放回原来的架子上，谢谢大家的合作。"),
    ]
    assert groups(rows).tolist() == [0, 0, 2, 2, 4, 5, 6, 6, 8, 8]


def test_the_groups_are_the_same_on_every_machine():
    """The numbers of `val_split: 2` never change: a run would continue with other rows."""
    rows, english = plain(200, seed=11), English(12)
    rows += [KINDS["5 % edited"][0](english, row, 0.05) for row in rows[::4]]
    rows += [KINDS["first half"][0](english, row, 0.0) for row in rows[1:200:8]]
    found = groups([as_row(row) for row in rows])
    train, held_out = split_groups(found, 40, 42)
    assert int(np.dot(found, np.arange(len(found))) % 1_000_003) == 434138
    assert held_out.tolist()[:8] == [0, 6, 9, 10, 12, 28, 39, 57]
    assert (len(train), len(held_out)) == (235, 40)


def test_the_number_of_the_job_chooses_the_split():
    """Guard: with the groups for every job, a run of an earlier version would continue with other rows."""
    rows = [as_row(row) for row in plain(20)] * 2
    data = {"base_model": "m", "datasets": [{"path": "x", "rows": 40}], "max_steps": 1, "val_set_size": 0.2}
    old = JobSpec.model_validate(data)
    new = old.model_copy(update={"val_split": 2})
    assert [part.tolist() for part in split_rows(rows, old)] == [part.tolist() for part in split(40, 8, 42)]
    train, held_out = ({n % 20 for n in part.tolist()} for part in split_rows(rows, new))
    assert len(held_out) == 4
    assert not train & held_out
    assert split_rows(rows, new.model_copy(update={"val_set_size": 0.0}))[1].tolist() == []


def test_an_old_job_says_nothing_about_its_split():
    data = {"base_model": "m", "datasets": [{"path": "x", "rows": 10}], "max_steps": 1, "val_set_size": 0.2}
    spec = JobSpec.model_validate(data)
    assert "val_split" not in spec.model_dump(mode="json")
    assert Recipe.of(spec.model_copy(update={"val_split": 2})).val_split == 2
