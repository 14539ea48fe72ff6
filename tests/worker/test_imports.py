"""What makes the imports of a session quick."""

from __future__ import annotations

import gc
from importlib import metadata

from worker.shared.imports import quick_imports


def test_the_installed_packages_are_listed_once(monkeypatch) -> None:
    """Guard: without the cache, transformers and trl each read the files of every installed package."""
    calls: list[None] = []

    def listed() -> dict[str, list[str]]:
        calls.append(None)
        return {"numpy": ["numpy"]}

    monkeypatch.setattr(metadata, "packages_distributions", listed)
    with quick_imports():
        assert metadata.packages_distributions() == metadata.packages_distributions() == {"numpy": ["numpy"]}
        assert not gc.isenabled()
    assert len(calls) == 1
    assert metadata.packages_distributions is listed
    assert gc.isenabled()
    gc.unfreeze()
