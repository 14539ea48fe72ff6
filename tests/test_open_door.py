"""What a stranger finds at the door: drivers are named in their own folders only, and the walk-throughs are true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "contributing.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EVERYDAY_WORDS = {"joined", "local"}
"""Providers whose name is a word of its own: the server has local stores and clocks, and machines that have joined."""
NAMED_ELSEWHERE = {
    "orchestrator/adapters/stores/google_drive/settings.py": "Google Drive opens notebooks in Google's own editor",
    "orchestrator/entrypoints/demo/sandbox.py": "the sandbox plays with the emulators of the tests, by their names",
    "orchestrator/entrypoints/cli/doctor.py": "what the extras of this distribution are for",
    "worker/shared/installation.py": "the extras of this distribution, for the line that installs them",
    "worker/shared/places.py": "what tells a worker where it runs; its values are part of the protocol",
}
"""The files outside a provider's own folder that name it, each with the reason."""
TEXT = {".py", ".html", ".js", ".css", ".md", ".sh", ".ini", ".toml"}


def _names() -> set[str]:
    return set(PROJECT["entry-points"]["trainhop.providers"]) - EVERYDAY_WORDS


def _naming(name: str) -> set[str]:
    """Files of the server and the worker that name this provider outside its folder."""
    own = f"orchestrator/providers/{name}/"
    files = [p for top in ("orchestrator", "worker") for p in (ROOT / top).rglob("*") if p.suffix in TEXT]
    assert len(files) > 200
    paths = {str(p.relative_to(ROOT)): p for p in files}
    return {
        path
        for path, file in paths.items()
        if not path.startswith(own) and name in (path + file.read_text(encoding="utf-8")).lower()
    }


def test_a_provider_is_named_in_its_own_folder_only() -> None:
    """Guard: a name written into a service, a page, a help text or another provider's folder is found here."""
    assert {"kaggle", "colab"} <= _names()
    assert {path for name in _names() for path in _naming(name)} == set(NAMED_ELSEWHERE)
    assert all(NAMED_ELSEWHERE.values())


def _sections() -> dict[str, str]:
    """The walk-throughs by what is added."""
    parts = re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)[1:]
    bodies = {part.partition("\n")[0].strip(): part for part in parts}
    return {title.removeprefix("Add "): body for title, body in bodies.items() if title.startswith("Add ")}


def _steps(body: str) -> list[str]:
    return re.findall(r"^\d+\. .*(?:\n {3}.*)*", body, flags=re.MULTILINE)


def test_every_walk_through_is_listed_with_the_files_that_it_touches() -> None:
    """Guard: a step more, or less, than the table says fails here."""
    rows = dict(re.findall(r"^\| (an? [\w ]+) \| (\d+) \|$", GUIDE.read_text(), flags=re.MULTILINE))
    assert {what: str(len(_steps(body))) for what, body in _sections().items()} == rows
    assert len(rows) == 9


@pytest.mark.parametrize("what", sorted(_sections()))
def test_every_step_names_files_that_exist(what: str) -> None:
    for step in _steps(_sections()[what]):
        named = re.findall(r"`((?:orchestrator|worker|tests|docs|migrations|examples)/[\w./-]+|pyproject\.toml)`", step)
        assert named, step
        assert not [path for path in named if not (ROOT / path).exists()], step


def test_the_walk_through_of_a_provider_names_all_files_of_the_example() -> None:
    """Guard: with a file more in the example, or less, the guide does not tell the whole of it."""
    steps = _steps(_sections()["a provider in a distribution of your own"])
    named = {re.findall(r"`(examples/driver/[\w.]+)`", step)[0] for step in steps}
    made = {"__pycache__", "build", "trainhop_workshop.egg-info"}
    assert named == {
        f"examples/driver/{p.name}" for p in (ROOT / "examples" / "driver").iterdir() if p.name not in made
    }


def test_every_driver_of_ours_comes_through_an_entry_point() -> None:
    """Guard: a driver that only our own composition root can make is not one that a stranger can write."""
    made_by_hand = re.compile(r"\b(?:Kaggle|Colab|Local)Provider\(|\bDriveStore\(")
    files = [p for p in (ROOT / "orchestrator").rglob("*.py") if made_by_hand.search(_calls(p.read_text()))]
    assert files == []
    assert set(PROJECT["entry-points"]["trainhop.stores"]) == {"drive", "local"}


def _calls(source: str) -> str:
    return re.sub(r"^class .*$", "", source, flags=re.MULTILINE)
