"""The data checks in the process with limits (`worker.shared.limited_call`). Requests and answers are plain data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.shared.data_checks import held_out
from worker.shared.data_checks.benchmark_items import BenchmarkItems
from worker.shared.data_checks.clean_copy import write_clean
from worker.shared.data_checks.runner import Data, Options, Outcome, check, items_in
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.dataset_files import DatasetError, Row, read_rows
from worker.shared.dataset_spec import FileFormat, RowFormat

NO_TOKENIZER = "the model's tokenizer is not on this server"
Json = dict[str, Any]


def checked(request: Json) -> Json:
    """The report of a file, or a `fault`."""
    try:
        return {"report": _outcome(request).report.to_json()}
    except DatasetError as error:
        return {"fault": str(error)}


def cleaned(request: Json) -> Json:
    """Write a clean copy of a file to `out`, if rows are left out. The answer is their number, or a `fault`."""
    try:
        left_out = _outcome(request).left_out
        if left_out:
            with Path(request["out"]).open("wb") as out:
                write_clean(Path(request["path"]), FileFormat(request["container"]), left_out, out)
    except DatasetError as error:
        return {"fault": str(error)}
    return {"left_out": len(left_out)}


def leaked(request: Json) -> Json:
    """What rows have in common with the texts of the files in `items`, or a `fault`."""
    items = BenchmarkItems({})
    try:
        for each in request["items"]:
            path, container = Path(each["path"]), FileFormat(each["container"])
            row_format = RowFormat(each["row_format"])
            items.add_items(each["source"], (_asked_text(row) for row in read_rows(path, row_format, container)))
        return {"findings": [asdict(found) for found in items_in(_data(request), items)]}
    except DatasetError as error:
        return {"fault": str(error)}


def _asked_text(row: Row) -> str:
    return " ".join(turn.content for turn in row.messages if turn.role == "user") if row.messages else row.text


def compared(request: Json) -> Json:
    """The report of `held_out` rows against `trained` files, or a `fault`."""
    try:
        report = held_out.compare([_data(each) for each in request["trained"]], _data(request), request["names"])
    except DatasetError as error:
        return {"fault": str(error)}
    return {"report": report.to_json()}


def split_checked(request: Json) -> Json:
    """The report of the split of a job with these `trained` files, or a `fault`."""
    try:
        files = [_data(each) for each in request["trained"]]
        report = held_out.check_split(files, request["eval_rows"], request["seed"])
    except DatasetError as error:
        return {"fault": str(error)}
    return {"report": report.to_json()}


def _outcome(request: Json) -> Outcome:
    return check(_data(request), Options(tokens=TokenFacts(away=NO_TOKENIZER)))


def _data(request: Json) -> Data:
    return Data(
        path=Path(request["path"]),
        row_format=RowFormat(request["row_format"]),
        container=FileFormat(request["container"]),
        rows=request["rows"],
    )
