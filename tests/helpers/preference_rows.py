"""Rows of preferences for the tiny model, and training runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.training_runs import TrainingRuns
from worker.shared.dataset_spec import RowFormat
from worker.shared.methods import METHODS

COUNT = 11


def record(number: int, row_format: RowFormat) -> dict[str, Any]:
    """A short row of this format."""
    good, bad = f"it is {number * number}. " * (1 + number % 3), f"no idea, maybe {number}"
    asked = [{"role": "user", "content": f"what is {number} squared?"}]
    if row_format is RowFormat.PREFERENCE:
        answers = {
            name: [{"role": "assistant", "content": text}] for name, text in (("chosen", good), ("rejected", bad))
        }
        return {"prompt": asked, **answers}
    is_good = number % 3 > 0
    return {
        "prompt": asked,
        "completion": [{"role": "assistant", "content": good if is_good else bad}],
        "label": is_good,
    }


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """A file of these rows."""
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def runs(method: str, base: Path, folder: Path, count: int = COUNT) -> TrainingRuns:
    """Training runs on `count` rows that the method takes."""
    rows = [record(number, METHODS[method].formats[0]) for number in range(count)]
    return TrainingRuns(base=base, dataset=write(folder / "rows.jsonl", rows), rows=count, folder=folder)
