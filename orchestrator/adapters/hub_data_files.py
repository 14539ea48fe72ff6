"""Chooses the data files of a split among the files of a dataset on the hub: one file, or all shards in their order."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from orchestrator.domain.errors import InvalidError

_DATA = (".jsonl", ".csv", ".parquet", ".json")
_PACKED = (".jsonl.gz", ".json.gz", ".csv.gz", ".tsv", ".tsv.gz", ".ndjson", ".ndjson.gz")
"""Chosen where there is no other file, because packed copies may lie beside the plain files."""
_SHARD = re.compile(r"(?P<of>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?(?P<kind>\.[a-z.]+)")


def files_of_split(name: str, split: str, files: list[str]) -> list[str]:
    """The files of this split of the dataset `name`. Raises `InvalidError` if they are not one file, shards and all."""
    for endings in (_DATA, _PACKED):
        data = [file for file in files if file.endswith(endings)]
        wanted = [file for file in data if split in PurePosixPath(file).name] or (data if len(data) == 1 else [])
        if wanted:
            break
    if len(wanted) == 1 and _SHARD.fullmatch(wanted[0]) is None:
        return wanted
    return _shards(name, split, wanted)


def _shards(name: str, split: str, files: list[str]) -> list[str]:
    found = {file: match for file in files if (match := _SHARD.fullmatch(file)) is not None}
    sets = {(match["of"], match["count"], match["kind"]) for match in found.values()}
    if len(found) != len(files) or len(sets) != 1:
        message = f"{name} has {len(files)} data files for split '{split}'. Download them and upload one file."
        raise InvalidError(message, [("/path", message)])
    numbers = sorted(int(match["number"]) for match in found.values())
    ((_, count, _),) = sets
    if numbers != list(range(int(count))):
        message = f"{name} has {len(numbers)} of the {int(count)} shards of split '{split}'. Choose another revision."
        raise InvalidError(message, [("/path", message)])
    return sorted(found, key=lambda file: found[file]["number"])
