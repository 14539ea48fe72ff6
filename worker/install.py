"""The one set of packages that every worker trains with, whatever machine it is on, and getting it there.

Standard library only, so that it runs before anything is installed: a Kaggle kernel's script and a notebook call it, people
run `python -m worker.install [--wheels FOLDER] [--gpu]`.
`pyproject.toml` names the same versions in its extra `train`; a test compares the two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from worker import bundle

TRAIN = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.8.5",
    "peft": "0.21.2",
    "transformers": "5.17.0",
    "trl": "1.15.0",
}
"""What both backends need. torch is not among them: an image ships its own CUDA build, which must never be replaced."""

UNSLOTH = {
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "cut_cross_entropy": "25.1.1",
    "torchao": "0.18.0",
    "tyro": "1.0.17",
    "msgspec": "0.22.0",
    "docstring_parser": "0.18.0",
    "shtab": "1.13.0",
    "typeguard": "4.6.1",
}
"""What the `unsloth` backend needs besides, without resolving: its own requirements cannot all be met at once.

xformers is left out on purpose (see `worker.training.unsloth`).
"""

KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy")
"""What an image ships stays as it is, unless it is named itself."""


def every_line() -> list[str]:
    """Requirements of a worker that trains, in pip's words."""
    return [*bundle.requirements(), *bundle.requirements("train")]


def set_key(lines: Iterable[str] | None = None) -> str:
    """12 hexadecimal characters that name the set of these requirements, by default of a worker that trains."""
    wanted = "\n".join(sorted(every_line() if lines is None else lines))
    return hashlib.sha256(wanted.encode()).hexdigest()[:12]


def missing(gpu: bool) -> dict[str, str]:
    """Name and version of each package of the set that is not here in just that version."""
    wanted = TRAIN | UNSLOTH if gpu else TRAIN
    return {name: version for name, version in wanted.items() if installed(name) != version}


def installed(name: str) -> str | None:
    """The version that is here, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def lacking(requirements: Iterable[str]) -> list[str]:
    """Those of these requirements, in pip's words, that are not met here."""
    return [line for line in requirements if not _is_met(line)]


def _is_met(line: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip is always there, and brings its own
        from pip._vendor.packaging.requirements import Requirement

    wanted = Requirement(line)
    found = installed(wanted.name)
    return found is not None and wanted.specifier.contains(found, prereleases=True)


def pip(lines: Sequence[str], wheels: Path | None = None, *, resolve: bool = True) -> None:
    """Install these, from the staged wheels alone where there are any; nothing may replace what is `KEPT`.

    Raises `subprocess.CalledProcessError` with pip's words in `stderr`.
    """
    if not lines:
        return
    named = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
    call = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if wheels is not None:
        call += ["--no-index", "--find-links", str(wheels)]
    if not resolve:
        call += ["--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "constraints.txt")
        kept.write_text("".join(f"{n}=={v}\n" for n in KEPT if n not in named and (v := installed(n))))
        call += ["--constraint", str(kept), *lines]
        subprocess.run(call, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def why(error: subprocess.CalledProcessError) -> str:
    """The last word of pip, or of whatever else was run."""
    return ((error.stderr or "").strip().splitlines() or ["no reason was given"])[-1]


def bring_in(wheels: Path | None, *, gpu: bool) -> dict[str, str]:
    """Install what is missing of the set and return it. Raises `subprocess.CalledProcessError` if pip does not manage."""
    lacks = missing(gpu)
    for part, resolve in ((TRAIN, True), (UNSLOTH, False)):
        pip([f"{name}=={version}" for name, version in lacks.items() if name in part], wheels, resolve=resolve)
    return lacks


def unsloth(wheels: Path | None = None) -> str:
    """Bring in the second backend, and take it away again if it cannot be imported here; returns why, or nothing."""
    try:
        pip(
            [f"{name}=={version}" for name, version in missing(gpu=True).items() if name in UNSLOTH],
            wheels,
            resolve=False,
        )
        subprocess.run([sys.executable, "-c", "import unsloth"], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        remove = [
            sys.executable,
            "-m",
            "pip",
            "uninstall",
            "--quiet",
            "--disable-pip-version-check",
            "--yes",
            "unsloth",
        ]
        subprocess.run(remove, check=False, capture_output=True)
        return why(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Bring in what is missing and print it with the seconds it took, as one line of JSON."""
    parser = argparse.ArgumentParser(description="Install what a Trainhop worker trains with.")
    parser.add_argument("--wheels", type=Path, help="a folder of staged wheels; nothing is fetched then")
    parser.add_argument("--gpu", action="store_true", help="with the unsloth backend")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    brought = bring_in(asked.wheels, gpu=asked.gpu)
    print(json.dumps({"installed": brought, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
