"""Writes a copy of a dataset without the rows that the checks have found, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import IO

from worker.shared.dataset_containers import READERS
from worker.shared.dataset_files import DatasetError, detect_file_format
from worker.shared.dataset_spec import FileFormat


def write_clean(path: Path, container: FileFormat | None, left_out: AbstractSet[int], out: IO[bytes]) -> int:
    """Write the records of `path` whose place, from 0, is not in `left_out`. Returns their number.

    Raises `DatasetError` if none is left.
    """
    kept = 0
    for place, (_, record) in enumerate(READERS[container or detect_file_format(path)](path)):
        if place not in left_out:
            out.write(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")
            kept += 1
    if not kept:
        raise DatasetError("every row was found by a check, so nothing is left for a clean copy")
    return kept
