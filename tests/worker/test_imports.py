"""What makes the imports of a session quick."""

from __future__ import annotations

import gc
import inspect
from importlib import metadata
from pathlib import Path

import pytest

from worker.shared.imports import packages, quick_imports, version


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
    assert listed == packages()


def test_the_list_is_that_of_python() -> None:
    """Each package that the older Python lists is there, and all together are what Python 3.12 says of these files."""
    listed = packages()
    expected: dict[str, list[str]] = {}
    for each in metadata.distributions():
        files = each.files or ()
        inferred = {f.parts[0] if len(f.parts) > 1 else inspect.getmodulename(f) for f in files}
        for name in (each.read_text("top_level.txt") or "").split() or {n for n in inferred if n and "." not in n}:
            expected.setdefault(name, []).append(each.metadata["Name"])
    assert listed == expected
    assert metadata.packages_distributions().items() <= listed.items()
    assert listed["torch"] == ["torch"]


def test_a_package_without_a_record_or_with_commas_in_its_names_is_listed(tmp_path: Path) -> None:
    record = 'plain_one/a.py,sha256=x,1\nplain_two.py,,\n"plain_one/b, c.py",,\nplain.dist-info/RECORD,,\n'
    for name, file, content in (("plain", "RECORD", record), ("old", "SOURCES.txt", "old_one/__init__.py\n")):
        folder = tmp_path / f"{name}.{'dist' if file == 'RECORD' else 'egg'}-info"
        folder.mkdir()
        (folder / file).write_text(content)
        (folder / ("METADATA" if file == "RECORD" else "PKG-INFO")).write_text(f"Metadata-Version: 2.1\nName: {name}\n")
    (tmp_path / "old_one").mkdir()
    (tmp_path / "old_one" / "__init__.py").touch()
    assert packages([str(tmp_path)]) == {"plain_one": ["plain"], "plain_two": ["plain"], "old_one": ["old"]}


def test_versions_are_those_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of packages of both kinds, and never a line of the description."""
    about = "Metadata-Version: 2.1\nName: plain-one\nVersion: 1.2+cpu\n\nVersion: 9\n"
    for folder, text in (("plain_one-1.2.dist-info", about), ("old_one-2.egg-info", about.replace("plain-", "old-"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ("METADATA" if "dist" in folder else "PKG-INFO")).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    names = ["plain-one", "old-one", *sorted({each.name for each in metadata.distributions()})]
    assert [version(name) for name in names] == [metadata.version(name) for name in names]
    with pytest.raises(metadata.PackageNotFoundError):
        version("no-such-package")
