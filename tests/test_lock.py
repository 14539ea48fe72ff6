"""The lock file of the server's packages has what pyproject.toml asks for, each with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = ("server", "drive", "kaggle", "postgres")
"""As `LOCKED` in the Makefile."""


def _pins() -> dict[str, str]:
    text = (ROOT / ".ci" / "server.lock").read_text()
    entries = [entry for entry in re.split(r"\n(?=\w)", text) if entry.strip()]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    pins = [re.match(r"([\w.-]+)(?:\[[^]]*])?==([^ ;]+)", entry) for entry in entries]
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin is not None}


def test_the_lock_file_has_what_the_server_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    pins = _pins()
    wrong = [
        f"{line}: {pins.get(canonicalize_name(asked.name))} in .ci/server.lock; run `make lock`"
        for line in lines
        if not (asked := Requirement(line)).specifier.contains(pins.get(canonicalize_name(asked.name), "0"))
        or canonicalize_name(asked.name) not in pins
    ]
    assert not wrong


def test_no_torch_is_locked() -> None:
    """It is installed first, as the build that fits the machine."""
    assert "torch" not in _pins()
