"""Which files of a dataset on the hub are a split."""

from __future__ import annotations

import pytest

from orchestrator.adapters.hub_data_files import files_of_split
from orchestrator.domain.errors import InvalidError

SHARDED = [f"data/train-{n:05}-of-00003.parquet" for n in range(3)]


@pytest.mark.parametrize(
    ("files", "split", "chosen"),
    [
        (["train.jsonl", "test.jsonl", "README.md"], "train", ["train.jsonl"]),
        ([*reversed(SHARDED), "data/test-00000-of-00001.parquet"], "train", SHARDED),
        ([*SHARDED, "data/test-00000-of-00001.parquet"], "test", ["data/test-00000-of-00001.parquet"]),
        (["train-00000-of-00001-ab12cd34.parquet"], "train", ["train-00000-of-00001-ab12cd34.parquet"]),
        (["train.jsonl", "train.jsonl.gz"], "train", ["train.jsonl"]),
        (["train.csv.gz"], "train", ["train.csv.gz"]),
        (["rows.jsonl"], "train", ["rows.jsonl"]),
    ],
)
def test_all_shards_of_a_split_are_chosen_in_order(files, split, chosen):
    assert files_of_split("org/rows", split, files) == chosen


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (SHARDED[1:], "org/rows has 2 of the 3 shards of split 'train'"),
        ([*SHARDED, "en/train-00000-of-00001.parquet"], "has 4 data files for split 'train'"),
        ([*SHARDED, "train.jsonl"], "has 4 data files for split 'train'"),
        ([*SHARDED[:2], SHARDED[2].replace("parquet", "csv")], "has 3 data files for split 'train'"),
        (["train-00001-of-00002.jsonl"], "has 1 of the 2 shards"),
        ([], "has 0 data files for split 'train'"),
    ],
)
def test_a_split_that_is_not_whole_is_refused(files, words):
    """Guard: without the numbers compared, a job trained on two shards of three."""
    with pytest.raises(InvalidError, match=words):
        files_of_split("org/rows", "train", files)


def test_a_subset_is_a_folder_or_the_beginning_of_a_name():
    """Guard: without `_of_subset` a dataset with several was refused whatever its job said."""
    files = ["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet", "de-train.jsonl"]
    assert files_of_split("org/rows", "train", files, "main") == files[:1]
    assert files_of_split("org/rows", "train", files, "de") == files[2:]
    with pytest.raises(InvalidError, match="has no subset 'socratc'; did you mean 'socratic'"):
        files_of_split("org/rows", "train", files, "socratc")
    with pytest.raises(InvalidError, match=r"has 3 data files for split 'train'\. Choose a subset with the key name"):
        files_of_split("org/rows", "train", files)
