"""Chooses the data files of a split among the files of a dataset on the hub: one file, or all shards in their order."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from orchestrator.domain.errors import InvalidError
from worker.shared.plain_errors import nearest

_DATA = (".jsonl", ".csv", ".parquet", ".json")
_PACKED = (".jsonl.gz", ".json.gz", ".csv.gz", ".tsv", ".tsv.gz", ".ndjson", ".ndjson.gz")
"""Chosen where there is no other file, because packed copies may lie beside the plain files."""
_SHARD = re.compile(r"(?P<of>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?(?P<kind>\.[a-z.]+)")


def files_of_split(name: str, split: str, files: list[str], subset: str | None = None) -> list[str]:
    """The files of this split of the dataset `name`, and of its `subset`, which is a folder or begins a file's name.

    Raises `InvalidError` if they are not one file, or all shards of one.
    """
    if subset is not None:
        files = _of_subset(name, subset, files)
    for endings in (_DATA, _PACKED):
        data = [file for file in files if file.endswith(endings)]
        wanted = [file for file in data if split in PurePosixPath(file).name] or (data if len(data) == 1 else [])
        if wanted:
            break
    if len(wanted) == 1 and _SHARD.fullmatch(wanted[0]) is None:
        return wanted
    return _shards(name, split, wanted)


def _of_subset(name: str, subset: str, files: list[str]) -> list[str]:
    begins = re.compile(re.escape(subset) + r"[-_.]")
    found = [f for f in files if subset in PurePosixPath(f).parts[:-1] or begins.match(PurePosixPath(f).name)]
    if not found:
        folders = {part for file in files for part in PurePosixPath(file).parts[:-1]}
        words = f"{name} has no subset '{subset}'{nearest(subset, folders)}"
        raise InvalidError(words, [("/path", words)])
    return found


def _shards(name: str, split: str, files: list[str]) -> list[str]:
    found = {file: match for file in files if (match := _SHARD.fullmatch(file)) is not None}
    sets = {(match["of"], match["count"], match["kind"]) for match in found.values()}
    if len(found) != len(files) or len(sets) != 1:
        message = f"{name} has {len(files)} data files for split '{split}'. "
        message += "Choose a subset with the key name, or download them and upload one file."
        raise InvalidError(message, [("/path", message)])
    numbers = sorted(int(match["number"]) for match in found.values())
    ((_, count, _),) = sets
    if numbers != list(range(int(count))):
        message = f"{name} has {len(numbers)} of the {int(count)} shards of split '{split}'. Choose another revision."
        raise InvalidError(message, [("/path", message)])
    return sorted(found, key=lambda file: found[file]["number"])
