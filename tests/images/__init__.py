"""Machines like Kaggle's and Colab's: their published package lists, and environments that hold the same packages.

`lists/` has one file for each published image; `make images` builds the environments into `.images`. Only what our
packages import, replace or meet at start is built: `LEFT_OUT` names the rest.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LISTS = Path(__file__).parent / "lists"
FOLDER = Path(os.environ.get("TRAINHOP_TEST_IMAGES") or Path(__file__).parents[2] / ".images")
"""Where the environments lie."""
NAMES = sorted(path.stem for path in LISTS.glob("*.toml"))
IN_CI = ("kaggle-gpu", "colab-gpu")
"""One of each house and of each Python."""
STUBBED = "tensorflow"
LEFT_OUT = frozenset({STUBBED, "keras", "jax", "diffusers", "torchtune", "torchdata", "torchcodec"})
"""Large, and imported by nothing that we bring; TensorFlow is a stub that counts its imports."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One published list. `packages` are versions or specifiers by name; `python` is like "3.12"."""

    name: str
    title: str
    python: str
    date: dt.date
    source: str
    packages: Mapping[str, str]
    absent: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    start_hook: str = ""

    @property
    def folder(self) -> Path:
        """The built environment."""
        return FOLDER / self.name

    @property
    def executable(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def jupyter(self) -> Path:
        """What `JUPYTER_PATH` has to name for notebooks to run in it."""
        return self.folder / "share" / "jupyter"

    @property
    def wheels(self) -> Path:
        """A folder with the wheels of our own set for this Python, to install from without a network."""
        return FOLDER / f"wheels-{self.python}"

    @property
    def marker(self) -> Path:
        """What a finished environment holds: what it was built from."""
        return self.folder / "built.json"

    @property
    def site_packages(self) -> Path:
        return self.folder / "lib" / f"python{self.python}" / "site-packages"

    @property
    def distributions(self) -> list[str]:
        """What is installed there, as names with versions."""
        return sorted(path.stem for path in self.site_packages.glob("*.dist-info"))

    @property
    def variables(self) -> dict[str, str]:
        """A kernel's environment: the image's own, and the local wheels in place of an index."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        return {**self.environment, **offline}

    @property
    def problem(self) -> str:
        """Why no session can run in it here, or nothing."""
        if self.marker.exists():
            changed = set(self.distributions) ^ set(json.loads(self.marker.read_text()).get("distributions", []))
            said = f"{self.title}'s image is not as it was built ({', '.join(sorted(changed)[:4])}): run `make images`"
            return said if changed else ""
        if interpreter(self.python) is None:
            return f"{self.title}'s image needs Python {self.python}, which is not here: install python{self.python}"
        return f"{self.title}'s image is not built: run `make images`"


@functools.cache
def load(name: str) -> Image:
    """The list of that name."""
    said = tomllib.loads((LISTS / f"{name}.toml").read_text())
    return Image(name=name, **said)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What kernels run in; `words` says which machine that is like."""

    python: str
    environment: Mapping[str, str]
    words: str


def place(name: str) -> Candidate:
    """The image of that name where it is built, else this process's own environment."""
    image = load(name)
    if image.problem:
        return Candidate(python=sys.executable, environment={}, words=f"this computer's own packages ({image.problem})")
    words = f"the packages of {image.title}'s image of {image.date}"
    return Candidate(python=image.executable, environment=image.variables, words=words)


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of that version that can make environments: from the path, or of pyenv."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv)]
    return next((python for python in candidates if python and _makes_environments(python)), None)


def _makes_environments(python: str) -> bool:
    try:  # pyenv puts a `python3.12` on the path that may refuse to run
        done = subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
