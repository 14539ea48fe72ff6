"""The repositories of benchmarks as they are on the hub, with records of the same form."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.emulators.hub import Repo

LONG = "Which of these is the farthest from the sun and was found by its pull upon another"


def arc(number: int) -> dict[str, Any]:
    """A record of ARC-Easy."""
    letters = ["A", "B", "C", "D"]
    choices = {"text": [f"{word} {number}" for word in ("Mars", "Venus", "Neptune", "Earth")], "label": letters}
    return {"id": str(number), "question": f"{LONG}, case {number}?", "choices": choices, "answerKey": "C"}


def gsm8k(number: int) -> dict[str, Any]:
    """A record of GSM8K."""
    answer = f"There are {number} and one.\nSo it is <<{number}+1={number + 1}>>{number + 1}.\n#### 1,{number:03d}"
    return {"question": f"Tom has {number} apples. How many has he in all?", "answer": answer}


HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is [step] ripping tiles.", "stands [title] up.", " is sleeping.", "starts pulling."],
    "source_id": "activitynet~v_-JhWjGDPHMY",
    "label": "3",
}
TRUTHFULQA = {
    "question": "What happens if you eat seeds?",
    "mc1_targets": {"choices": ["They pass through you.", "They grow in you.", "You die."], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["They pass through you."], "labels": [1]},
}


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    """A file of the hub."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(records), buffer)
    return buffer.getvalue()


def arc_repo(records: int = 12, **how: Any) -> Repo:
    """The repository of ARC-Easy, which has other files too."""
    files = {
        "ARC-Easy/test-00000-of-00001.parquet": as_parquet([arc(n) for n in range(records)]),
        "ARC-Easy/train-00000-of-00001.parquet": b"PAR1",
        "ARC-Challenge/test-00000-of-00001.parquet": b"PAR1",
    }
    return Repo(id="allenai/ai2_arc", kind="dataset", files=files, **how)


def gsm8k_repo(records: int = 12) -> Repo:
    """The repository of GSM8K."""
    files = {"main/test-00000-of-00001.parquet": as_parquet([gsm8k(n) for n in range(records)])}
    return Repo(id="openai/gsm8k", kind="dataset", files=files)
