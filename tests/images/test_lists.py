"""The lists of what is on other people's machines: whole, dated, and true of what was built from them."""

from __future__ import annotations

import datetime as dt
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import images
from tests.images import IN_CI, LEFT_OUT, NAMES, Image, load
from tests.images.build import BESIDES, requirement
from worker.shared.packages import TRAIN, UNSLOTH

OLD = dt.timedelta(days=120)


class OldListWarning(UserWarning):
    """An image has most likely changed since its list was copied."""


@pytest.mark.filterwarnings("default::tests.images.test_lists.OldListWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_list_says_how_old_it_is(name: str, record_property: Callable[[str, object], None]) -> None:
    """A list that grows old breaks nothing by that; whoever reads the summary sees it."""
    image = load(name)
    assert image.date.isoformat() in image.source
    assert re.search(r"commit [0-9a-f]{8}", image.source)
    age = dt.datetime.now(dt.UTC).date() - image.date
    record_property("age_days", age.days)
    if age > OLD:
        warnings.warn(f"the list of {image.title} is {age.days} days old: {image.source}", OldListWarning, stacklevel=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_list_names_what_meets_our_set(name: str) -> None:
    image = load(name)
    lists = {re.sub("[_.]", "-", package).lower() for package in image.packages}
    absent = {re.sub("[_.]", "-", package).lower() for package in image.absent}
    ours = {re.sub("[_.]", "-", package).lower() for package in {**TRAIN, **UNSLOTH}}
    assert not lists & absent
    assert {"accelerate", "datasets", "peft", "torchao", "transformers"} <= ours & lists
    assert {"bitsandbytes", "trl", "unsloth"} <= ours & absent
    assert image.packages["torchao"] == "0.10.0"
    assert set(image.packages) >= LEFT_OUT


@pytest.mark.parametrize("name", IN_CI)
def test_an_environment_holds_the_lists_versions(image: Callable[[str], Image], name: str) -> None:
    built = image(name)
    held = dict(one.rsplit("-", 1) for one in built.distributions)
    names = {re.sub("[-_.]+", "-", package).lower(): version for package, version in held.items()}
    for package, wanted in built.packages.items():
        found = names.get(re.sub("[-_.]+", "-", package).lower())
        if package in LEFT_OUT and package != "tensorflow":
            assert found is None, package
        elif wanted[0] not in "<>":
            assert found == wanted, package
        else:
            assert found is not None, package
    assert set(BESIDES) <= {*names}
    assert not {re.sub("[-_.]+", "-", package).lower() for package in built.absent} & {*names}


@pytest.mark.parametrize(
    ("version", "words"), [("2.10.0+cu128", "torch==2.10.0"), ("<82", "torch<82"), ("0.22.2", "torch==0.22.2")]
)
def test_an_index_knows_no_builds(version: str, words: str) -> None:
    assert requirement("torch", version) == words


def test_an_environment_that_was_changed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without the comparison, sessions ran in an image that an earlier one had installed packages into."""
    monkeypatch.setattr(images, "FOLDER", tmp_path)  # the built images themselves must stay as they are
    image = load("kaggle-gpu")
    assert image.problem
    (image.site_packages / "peft-0.19.1.dist-info").mkdir(parents=True)
    image.marker.write_text(json.dumps({"distributions": image.distributions}))
    assert not image.problem
    (image.site_packages / "trl-1.15.0.dist-info").mkdir()
    assert image.problem == "Kaggle GPU's image is not as it was built (trl-1.15.0): run `make images`"
