"""A small file that unpacks to much is refused in a sentence, before memory and time are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from orchestrator.services import data_reading
from worker.shared import limited_call
from worker.shared.dataset_containers import LINE_COST, MAX_COLUMNS, MAX_LINE_BYTES
from worker.shared.dataset_files import DatasetError, examine, inspect
from worker.shared.dataset_spec import FileFormat, RowFormat

MIB = 2**20


def table(path: Path, column: Any, **how: Any) -> None:
    parquet.write_table(pa.table({"text": column}), path, **how)


def repeated(value: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def nested(value: str, rows: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), repeated(value, rows))


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a dictionary": (lambda p: table(p, repeated("x" * 4 * MIB, 2_000)), "longer than 16 MiB"),
    "a dictionary, plain": (lambda p: table(p, repeated("x" * 4 * MIB, 200), store_schema=False), "longer than 16 MiB"),
    "a dictionary in lists": (lambda p: table(p, nested("x" * 4 * MIB, 2_000)), "longer than 16 MiB"),
    "many repeated rows": (lambda p: table(p, repeated("x" * MIB, 20_000)), "unpacks to more than 100 times"),
    "one long row": (lambda p: table(p, pa.array(["x" * 20 * MIB])), "longer than 16 MiB"),
    "many columns": (
        lambda p: parquet.write_table(pa.table({str(n): pa.array([1]) for n in range(10_001)}), p),
        "more than 10000 columns",
    ),
    "an array of one row": (
        lambda p: p.write_text('[{"text": [\n' + '"y",\n' * (MAX_LINE_BYTES // 5 + 10) + '"z"]}]'),
        "longer than 16 MiB; split the row",
    ),
    "a csv row of many lines": (
        lambda p: p.write_text('text\n"' + "\n" * (MAX_LINE_BYTES // LINE_COST + 10)),
        "a row that is longer than 16 MiB; close the quotes",
    ),
    "a csv header": (lambda p: p.write_text("," * MAX_COLUMNS + "\n"), "more than 1000 columns"),
}


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_what_unpacks_to_much_is_refused(tmp_path: Path, bomb: str) -> None:
    """Guards: without `_decoded` the first and the third were taken, 128 MiB a batch; without the ratio, the window,
    the cost of a line and the number of columns the others were read to their end."""
    path = tmp_path / "upload"
    write, words = BOMBS[bomb]
    write(path)
    container = FileFormat.CSV if "csv" in bomb else FileFormat.JSONL if "array" in bomb else FileFormat.PARQUET
    with pytest.raises(DatasetError, match=words):
        inspect(path, RowFormat.AUTO, container)
    _, found = examine(path, RowFormat.AUTO, container)
    assert any(isinstance(one, DatasetError) and words in one.message for one in found)


def test_rows_that_are_only_many_are_read(tmp_path: Path) -> None:
    """Categories, lists and arrays over many lines are no bombs. Guard: with windows that did not count their lines a
    fault was said of the wrong one."""
    path = tmp_path / "upload"
    table(path, repeated("a category", 5_000))
    assert inspect(path).rows == 5_000
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 50}]] * 3_000
    parquet.write_table(pa.table({"messages": pa.array(turns)}), path)
    assert inspect(path).rows == 3_000
    rows = [json.dumps({"text": "é" * 50}, indent=1) for _ in range(4_000)]
    path.write_text("[" + ",\n".join(rows) + "\n]\n")
    assert inspect(path).rows == 4_000
    path.write_text("[" + ",\n".join([*rows, '{"text": 1x}']) + "\n]\n")
    with pytest.raises(DatasetError, match=r"line 12001: is not valid JSON \(Expecting ',' delimiter"):
        inspect(path)


def test_the_server_reads_packed_and_large_files_elsewhere(tmp_path: Path) -> None:
    """Guard: without `_within_limits` they are read in the server's own memory."""
    path = tmp_path / "rows.parquet"
    table(path, pa.array(["a", "b"]))
    assert data_reading.inspect(path, RowFormat.AUTO, FileFormat.PARQUET) == inspect(path)
    look = data_reading.preview(path, RowFormat.AUTO, FileFormat.PARQUET, sequence_len=8, train_on_inputs=False)
    assert (look.rows, look.shown[1][0].text) == (2, "b")
    path.write_bytes(b"PAR1 and no more PAR1")
    look = data_reading.preview(path, RowFormat.AUTO, FileFormat.PARQUET, sequence_len=8, train_on_inputs=False)
    assert "is not a readable Parquet file" in look.faults[0][1]


def greedy(request: dict[str, int]) -> int:
    """Takes this many MiB."""
    return len(bytearray(request["mib"] * MIB))


def endless(_: dict[str, Any]) -> None:
    """Never ends."""
    while True:
        pass


def test_a_call_with_limits_ends() -> None:
    """Guard: without `setrlimit` the first took all it wanted and the second ran for ever."""
    with pytest.raises(limited_call.LimitError, match="needs more than 64 MiB of memory"):
        limited_call.call(f"{__name__}:greedy", {"mib": 200}, cpu_s=10, memory_bytes=64 * MIB)
    with pytest.raises(limited_call.LimitError, match="needs more than 1 s of computing time"):
        limited_call.call(f"{__name__}:endless", {}, cpu_s=1)


@pytest.mark.parametrize(
    "row", [{f"k{n}": 1 for n in range(5_000)}, {"messages": [{"role": "x" * 100_000, "content": "a"}]}]
)
def test_a_message_does_not_quote_a_whole_file(tmp_path: Path, row: dict[str, Any]) -> None:
    """Guard: without `MAX_MESSAGE` and `KEYS_SHOWN` an answer was as long as the row."""
    path = tmp_path / "upload"
    path.write_text(json.dumps(row))
    with pytest.raises(DatasetError, match=r"; accepted are: messages|unknown role 'xxx") as caught:
        inspect(path)
    assert len(str(caught.value)) < 1_100
