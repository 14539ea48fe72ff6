"""The file with the items of a benchmark: made of the hub's file, and read by the worker and by the data checks.

It is JSON Lines. `text` is what the data checks look for in rows, `row` the number of the record in the hub's file.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.shared.benchmark_list import BENCHMARKS, Benchmark
from worker.shared.dataset_containers import READERS
from worker.shared.dataset_spec import FileFormat
from worker.shared.row_keys import DatasetError

MAX_TEXT = 8_192
"""Characters of a question, a choice or an answer."""
MAX_CHOICES = 32
FEW_WORDS = 10
"""A question with fewer words is looked for together with its answer, because shorter texts are not looked for."""
Json = dict[str, Any]


def made(request: Json) -> Json:
    """Write the chosen items of the hub's file `path` to `out`. For a process with limits. The answer is their number.

    The items are a sample that depends on the number of records alone: those with the smallest hashes of their numbers.
    They keep their order.
    """
    benchmark = BENCHMARKS[request["benchmark"]]
    path, container = Path(request["path"]), FileFormat(request["container"])
    try:
        found = sorted(
            heapq.nsmallest(benchmark.items, _ranked(path, container, benchmark), key=lambda each: each[0]),
            key=lambda each: each[1],
        )
        lines = [_line(benchmark, *each[1:]) for each in found]
    except DatasetError as error:
        return {"fault": error.message, "line": error.line}
    if not lines:
        return {"fault": "the file has no rows", "line": None}
    Path(request["out"]).write_text("".join(lines), encoding="utf-8")
    return {"items": len(lines)}


def _ranked(path: Path, container: FileFormat, benchmark: Benchmark) -> Iterator[tuple[bytes, int, Json]]:
    for number, (_, record) in enumerate(READERS[container](path)):
        yield hashlib.sha256(f"{benchmark.name} {number}".encode()).digest(), number, record


def _line(benchmark: Benchmark, number: int, record: Json) -> str:
    try:
        item = benchmark.item(record)
        _check(item)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise DatasetError(f"is not an item of {benchmark.name}; another revision may have it", number + 1) from None
    answer = item["answer"] if "answer" in item else item["choices"][item["gold"]]
    few = len(item["question"].split()) < FEW_WORDS
    text = f"{item['question']} {answer}" if few else item["question"]
    return json.dumps({"benchmark": benchmark.name, "row": number, "text": text, **item}, ensure_ascii=False) + "\n"


def _check(item: Json) -> None:
    """Raise `ValueError` for an item that cannot be asked."""
    choices = item.get("choices")
    texts = [item["question"], *(choices if choices is not None else [item["answer"]])]
    if not all(isinstance(text, str) and text.strip() and len(text) <= MAX_TEXT for text in texts):
        raise ValueError("a text is empty or too long")
    for text in texts:
        text.encode()
    if choices is not None and not (2 <= len(choices) <= MAX_CHOICES and 0 <= item["gold"] < len(choices)):
        raise ValueError("the choices are wrong")


def read_items(path: Path, name: str, rows: int) -> list[Json]:
    """The items of a benchmark. Raises `DatasetError` if the file has others, or another number of them."""
    found: list[Json] = []
    for line, record in READERS[FileFormat.JSONL](path):
        try:
            _check(record)
            is_right = record["benchmark"] == name and "text" in record
        except (KeyError, TypeError, ValueError):
            is_right = False
        if not is_right:
            raise DatasetError(f"is not an item of {name}", line)
        found.append(record)
    if len(found) != rows:
        raise DatasetError(f"there are {len(found)} items of {name}, but the job expects {rows}; evaluate again")
    return found
