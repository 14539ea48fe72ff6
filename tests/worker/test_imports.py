"""What makes the imports of a session quick."""

from __future__ import annotations

import gc
from importlib import metadata

from worker.shared.imports import quick_imports


def test_the_installed_packages_are_listed_once() -> None:
    """Guard: without the cache, transformers and trl each read the files of every installed package."""
    before = metadata.packages_distributions
    with quick_imports():
        listed = metadata.packages_distributions()
        assert metadata.packages_distributions() is listed
        assert not gc.isenabled()
    gc.unfreeze()
    assert gc.isenabled()
    assert metadata.packages_distributions is before
    assert listed == before()
