"""Rows of preferences: what is read, what is refused with its line, and how they are encoded and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.services.dataset_preview import preview
from tests.helpers.preference_rows import record, write
from worker.shared.data_checks.texts import Seen
from worker.shared.dataset_files import DatasetError, Message, Row, inspect, read_rows
from worker.shared.dataset_spec import RowFormat
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.methods import METHODS, SFT, refused_rows
from worker.training.encoding import Encoder, load_tokenizer
from worker.training.model_limits import ModelLimits
from worker.training.prompts import choose
from worker.training.token_preview import Request, preview_tokens

EXAMPLES = Path(__file__).parents[2] / "examples"
ASK, GOOD, BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")
A, G, B = ({"role": each.role, "content": each.content} for each in (ASK, GOOD, BAD))
PAIR = Row((ASK, GOOD), given=1, rejected=Row((ASK, BAD), given=1))
TEXTS = Row(prompt="q: ", text="good", rejected=Row(prompt="q: ", text="bad"))
SYSTEM = Message("system", "s")
WEIGHED = (replace(ASK, train=False), replace(GOOD, train=True)), (replace(ASK, train=False), replace(BAD, train=True))
PAIR_OF_WEIGHTS = Row(WEIGHED[0], given=1, rejected=Row(WEIGHED[1], given=1))
WITH_SYSTEM = Row((SYSTEM, ASK, GOOD), given=2, rejected=Row((SYSTEM, ASK, BAD), given=2))


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"prompt": [A], "chosen": [G], "rejected": [B]}, PAIR),
        ({"chosen": [A, G], "rejected": [A, B]}, PAIR),
        ({"prompt": "q", "chosen": [A, G], "rejected": [A, B]}, PAIR),
        ({"prompt": [A], "chosen": [G], "rejected": [B], "system": "s"}, WITH_SYSTEM),
        ({"prompt": "q: ", "chosen": "good", "rejected": "bad"}, TEXTS),
        (
            {"chosen": "q: good", "rejected": "q: bad"},
            Row(prompt="q:", text=" good", rejected=Row(prompt="q:", text=" bad")),
        ),
        ({"chosen": "abc", "rejected": "abcd"}, Row(prompt="ab", text="c", rejected=Row(prompt="ab", text="cd"))),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            PAIR,
        ),
        ({"prompt": [A], "chosen": G, "rejected": B}, PAIR),
        ({"chosen_messages": [A, G], "rejected_messages": [A, B]}, PAIR),
        (
            {
                f"{side}_messages": [
                    {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                    {"role": "assistant", "content": [{"type": "text", "value": said}], "loss_weight": 1.0},
                ]
                for side, said in (("chosen", "good"), ("rejected", "bad"))
            },
            PAIR_OF_WEIGHTS,
        ),
        ({"input": {"messages": [A]}, "preferred_output": [G], "non_preferred_output": [B]}, PAIR),
        ({"chosen": [A, G, A, G], "rejected": [A, G]}, Row((ASK, GOOD, ASK, GOOD), 1, rejected=Row((ASK, GOOD), 1))),
    ],
)
def test_pairs_are_read(tmp_path: Path, row: dict[str, Any], read: Row) -> None:
    """The prompt of pairs without one is what both begin with, as in TRL. Guard: the space before an answer's first
    word belongs to the answer."""
    path = write(tmp_path / "rows.jsonl", [row])
    assert list(read_rows(path)) == [read]
    assert inspect(path).type is RowFormat.PREFERENCE


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [A, G], "label": True},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}], "label": True},
    ],
)
def test_a_label_may_be_about_the_last_turn(tmp_path: Path, row: dict[str, Any]) -> None:
    """As in LLaMA-Factory's files. Guard: without the type such rows are those of supervised training."""
    path = write(tmp_path / "rows.jsonl", [row, row | {"label": False}])
    good, bad = read_rows(path, RowFormat.UNPAIRED_PREFERENCE)
    assert (good, bad) == (Row((ASK, GOOD), 1, desirable=True), Row((ASK, GOOD), 1, desirable=False))
    with pytest.raises(DatasetError, match=r"line 2: has label False.* the type unpaired_preference"):
        inspect(path)


def test_a_file_with_turns_and_pairs_is_one_of_turns(tmp_path: Path) -> None:
    """Guard: with pairs first, jobs that train on `messages` of such files were refused."""
    path = write(tmp_path / "rows.jsonl", [{"messages": [A, G], "chosen": [A, G], "rejected": [A, B]}])
    assert inspect(path).type is RowFormat.MESSAGES
    assert list(read_rows(path, RowFormat.PREFERENCE)) == [PAIR]
    alone = write(tmp_path / "alone.jsonl", [{"messages": [A], "chosen": G, "rejected": B}])
    assert list(read_rows(alone, RowFormat.PREFERENCE)) == [PAIR]


TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
OPENAI = {"input": {"messages": [A], "tools": [TOOL]}, "preferred_output": [G], "non_preferred_output": [B]}


def test_pairs_of_openai_bring_their_tools(tmp_path: Path) -> None:
    """Guard: with `input` taken for the prompt alone, the model would not be told of the tools."""
    (row,) = read_rows(write(tmp_path / "rows.jsonl", [OPENAI]), RowFormat.AUTO)
    assert "look" in row.tools
    assert row.rejected is not None
    assert row.rejected.tools == row.tools
    told = OPENAI["input"] | {"parallel_tool_calls": True}
    info = inspect(write(tmp_path / "told.jsonl", [OPENAI | {"input": told}]))
    assert (info.type, info.unused) == (RowFormat.PREFERENCE, ("parallel_tool_calls",))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (OPENAI | {"input": {"messages": [A], "parallel_tool_calls": False}}, "has parallel_tool_calls False"),
        (OPENAI | {"tools": [TOOL]}, "column 'chosen', 'rejected' is missing"),
        (OPENAI | {"input": "q"}, "column 'chosen', 'rejected' is missing"),
        (OPENAI | {"non_preferred_output": None}, "column 'rejected' is missing"),
    ],
)
def test_pairs_of_openai_that_say_more_are_refused(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    """Guard: without the comparison of keys, one list of tools would silently replace the other."""
    with pytest.raises(DatasetError, match=words):
        list(read_rows(write(tmp_path / "rows.jsonl", [row]), RowFormat.PREFERENCE))


def test_labelled_answers_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": [A], "completion": [G], "label": True}, {"prompt": [A], "completion": [B], "label": False}]
    path = write(tmp_path / "rows.jsonl", rows)
    wanted = [Row((ASK, GOOD), given=1, desirable=True), Row((ASK, BAD), given=1, desirable=False)]
    assert list(read_rows(path)) == wanted
    assert inspect(path).type is RowFormat.UNPAIRED_PREFERENCE
    assert [row.desirable for row in read_rows(path, RowFormat.PROMPT_COMPLETION, all_keys=False)] == [None, None]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are the same"),
        ({"chosen": [A, G], "rejected": [A, G]}, "are the same"),
        ({"chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": " ", "rejected": "a"}, "'chosen' is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": [A], "chosen": [G], "rejected": []}, "'rejected' has no assistant turn"),
        ({"prompt": [A], "chosen": [A], "rejected": [B]}, "'chosen' has no assistant turn"),
        ({"prompt": [A], "chosen": "a", "rejected": [B]}, "must all be strings or all be lists"),
        ({"prompt": [A], "chosen": "a", "rejected": "b"}, "must all be strings or all be lists"),
        ({"prompt": "other", "chosen": [A, G], "rejected": [A, B]}, "'prompt' is a string and not the last user turn"),
        ({"prompt": [A], "chosen": [A, G], "rejected": [A, B]}, "begin with the prompt again"),
        ({"prompt": "q", "chosen": "a", "rejected": "\ud800"}, "unpaired surrogate"),
        ({"prompt": [A], "chosen": [G], "rejected": [B], "weight": 3}, "has weight 3"),
        ({"prompt": [A], "chosen": [G], "rejected": [B | {"tool_calls": [1]}]}, "a turn in 'rejected' calls a tool"),
        ({"prompt": "q", "completion": "a", "label": "true"}, "'label' is 'true'; write true or false"),
        ({"prompt": "q", "completion": "a", "label": 1}, "'label' is '1'; write true or false"),
        ({"prompt": "q", "completion": " ", "label": True}, "'completion' is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    """Each of them trained on nothing, or on the wrong thing, without its check."""
    kind = RowFormat.UNPAIRED_PREFERENCE if "label" in row else RowFormat.PREFERENCE
    good = record(1, kind) if isinstance(row["chosen" if "chosen" in row else "completion"], list) else None
    plain = {"prompt": "a", "chosen": "b", "rejected": "c"} if "chosen" in row else {"completion": "b", "label": False}
    path = write(tmp_path / "rows.jsonl", [good or {"prompt": "a"} | plain, row])
    with pytest.raises(DatasetError, match=f"line 2: .*{words}"):
        inspect(path, kind)


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    """Guard: without `_check_labels` such a file was trained on, and every answer only became more likely."""
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "a", "label": True}] * 2)
    with pytest.raises(DatasetError, match="every 'label' of the file is true"):
        inspect(path)
    shown = preview(path, RowFormat.AUTO, None, sequence_len=64, train_on_inputs=False)
    assert "every 'label'" in shown.faults[0][1]
    assert inspect(path, RowFormat.PROMPT_COMPLETION).unused == ("label",)


def test_a_preview_shows_both_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": [A], "chosen": [G], "rejected": [B]}])
    (row,) = preview(path, RowFormat.AUTO, None, sequence_len=64, train_on_inputs=False).shown
    assert [(turn.role, turn.text, turn.trained) for turn in row] == [
        ("user", "q", False),
        ("assistant", "good", True),
        ("rejected: assistant", "bad", True),
    ]


def test_a_preview_by_token_shows_the_masks_of_both_answers(base: Path, tmp_path: Path) -> None:
    """The masks are those of the session. Guard: with one side alone, nobody saw what the other one is."""
    rows = [record(1, RowFormat.PREFERENCE)]
    plain: dict[str, Any] = {
        "tokenizer": str(base),
        "file_format": "jsonl",
        "sequence_len": 64,
        "train_on_inputs": False,
    }
    plain |= {"rows_shown": 5, "rows_measured": 9, "seconds": 60.0, "cpu_s": 60}
    path = write(tmp_path / "rows.jsonl", rows)
    found = preview_tokens(Request(**plain, file=str(path), row_format="preference"))
    encoder = Encoder(load_tokenizer(base, trust_remote_code=False), 64, False, encoding=3)
    sides = encoder.encode(next(read_rows(path))).sides
    assert [row["side"] for row in found["shown"]] == ["chosen", "rejected"]
    assert [row["trained"] for row in found["shown"]] == [sum(n != -100 for n in side.labels) for side in sides]
    assert found["lengths"] == [max(len(side.input_ids) for side in sides)]
    assert found["untrained"] == 0
    cut = preview_tokens(Request(**{**plain, "sequence_len": 30}, file=str(path), row_format="preference"))
    assert cut["untrained"] == 1
    assert "no row has a trained token" in cut["untaught"]


def test_the_prompt_of_an_evaluation_is_that_of_both_answers(base: Path) -> None:
    """Guard: an undesirable answer was the one that answers are compared with."""
    encoder = Encoder(load_tokenizer(base, trust_remote_code=False), 64, False, encoding=3)
    spec = JobSpec.model_validate({"base_model": "m", "datasets": [{"path": "d"}], "max_steps": 1, "rl": "kto"})
    spec = spec.model_copy(update={"evaluation": EvaluationSpec(max_prompts=9, measures=2)})
    bad = Row((ASK, BAD), given=1, desirable=False)
    limits = ModelLimits(tokens=10_000)
    for row, answer in ((PAIR, "good"), (replace(bad, desirable=True), "bad"), (bad, "")):
        ((prompt,), _) = choose([row], spec, encoder, 60, limits)
        assert (prompt.turns, prompt.own_answer) == ((ASK,), answer)


def test_checks_of_data_see_rejected_answers() -> None:
    """Guard: without `all_turns` a key in a rejected answer went to the hub with the model; without it in `whole_key`
    two pairs with one chosen answer were duplicates."""
    seen, other = (
        Seen(0, 1, PAIR),
        Seen(1, 2, Row(PAIR.messages, given=1, rejected=Row((ASK, Message("assistant", "x"))))),
    )
    assert [turn.content for turn in seen.all_turns] == ["q", "good", "bad"]
    assert seen.answers == (GOOD,)
    assert seen.whole_key != other.whole_key
    assert Seen(0, 1, Row((ASK, BAD), given=1, desirable=False)).answers == ()


@pytest.mark.parametrize("file", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_examples_are_jobs_with_the_rows_of_their_method(file: str) -> None:
    spec = JobSpec.model_validate(yaml.safe_load((EXAMPLES / file).read_text(encoding="utf-8")))
    for dataset in spec.datasets:
        path = EXAMPLES.parent / dataset.path
        if dataset.path.startswith("examples/"):
            info = inspect(path, dataset.type)
            assert refused_rows(spec, info.type) == ""
            assert info.unused == ()


def test_every_method_has_an_example() -> None:
    used = {yaml.safe_load(path.read_text(encoding="utf-8")).get("rl", SFT) for path in EXAMPLES.glob("*.yaml")}
    assert used == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_the_rows_of_others(method: str) -> None:
    keys = JobSpec.model_validate(
        {"base_model": "m", "datasets": [{"path": "d"}], "max_steps": 1} | ({} if method == SFT else {"rl": method})
    )
    for found in RowFormat:
        words = refused_rows(keys, found)
        assert bool(words) == (found is not RowFormat.AUTO and found not in METHODS[method].formats)
    if method == SFT:
        assert "set rl to dpo" in refused_rows(keys, RowFormat.PREFERENCE)
    else:
        assert "leave rl out" in refused_rows(keys, RowFormat.MESSAGES)
