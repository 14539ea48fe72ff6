"""The benchmarks that an evaluation can ask: where their items are on the hub, and how a record becomes an item.

A job file names them, so this module loads nothing else. How the items are asked is in `benchmark_tasks`: one task of
`lm-eval` for each benchmark.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

TASKS_FOLDER = resources.files("worker.shared").joinpath("benchmark_tasks")  # a worker may run out of its wheel
MAX_ITEMS = 300
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: the file of a hub dataset that has its items, and how many of them are asked.

    `file` is a pattern of the file's name in the repository `repo`, `config` and `split` are the hub's names of its
    part. `metric` is lm-eval's name of what is measured: 1 or 0 for each item. `kind` is the task in the words of a
    model card. `answer_tokens` are those of a written answer at most, 0 where one is chosen. `item` makes an item of a
    record, and raises `KeyError`, `TypeError`, `ValueError` or `IndexError` for one that has another form.
    """

    name: str
    title: str
    repo: str
    file: str
    config: str
    split: str
    items: int
    metric: str
    kind: str
    answer_tokens: int = 0
    item: Callable[[Mapping[str, Any]], Json]

    @property
    def task_sha256(self) -> str:
        """Hash of the file that says how its items are asked."""
        return _sha256(self.name)


@cache
def _sha256(name: str) -> str:
    return hashlib.sha256((TASKS_FOLDER / f"{name}.yaml").read_bytes()).hexdigest()


def _choice(question: str, choices: Sequence[str], right: int) -> Json:
    return {"question": question, "choices": list(choices), "gold": right}


def _arc(record: Mapping[str, Any]) -> Json:
    choices = record["choices"]
    return _choice(record["question"], choices["text"], list(choices["label"]).index(record["answerKey"]))


def _hellaswag(record: Mapping[str, Any]) -> Json:
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return _choice(_plain(context), [_plain(ending) for ending in record["endings"]], int(record["label"]))


def _plain(text: str) -> str:
    """A text without the marks of WikiHow that some items have, as lm-eval's own task writes it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _gsm8k(record: Mapping[str, Any]) -> Json:
    _, mark, answer = record["answer"].rpartition("####")
    if not mark:
        raise ValueError("no final answer")
    return {"question": record["question"], "answer": answer.strip()}


def _truthfulqa(record: Mapping[str, Any]) -> Json:
    targets = record["mc1_targets"]
    return _choice(record["question"], targets["choices"], list(targets["labels"]).index(1))


_LIST = (
    Benchmark(
        name="arc_easy",
        title="ARC-Easy",
        repo="allenai/ai2_arc",
        file="ARC-Easy/test-*.parquet",
        config="ARC-Easy",
        split="test",
        items=MAX_ITEMS,
        metric="acc_norm",
        kind="multiple-choice",
        item=_arc,
    ),
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        repo="openai/gsm8k",
        file="main/test-*.parquet",
        config="main",
        split="test",
        items=200,
        metric="exact_match",
        kind="text-generation",
        answer_tokens=256,
        item=_gsm8k,
    ),
    Benchmark(
        name="hellaswag",
        title="HellaSwag",
        repo="Rowan/hellaswag",
        file="data/validation-*.parquet",
        config="default",
        split="validation",
        items=MAX_ITEMS,
        metric="acc_norm",
        kind="multiple-choice",
        item=_hellaswag,
    ),
    Benchmark(
        name="truthfulqa_mc1",
        title="TruthfulQA (MC1)",
        repo="truthfulqa/truthful_qa",
        file="multiple_choice/validation-*.parquet",
        config="multiple_choice",
        split="validation",
        items=MAX_ITEMS,
        metric="acc",
        kind="multiple-choice",
        item=_truthfulqa,
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = {each.name: each for each in _LIST}
