"""The one set of packages that every worker trains with, whatever machine it is on, and getting it there.

Standard library only, so that it runs before anything is installed: a Kaggle kernel's script and a notebook call it, people
run `python -m worker.install [--wheels FOLDER] [--gpu]`.
`pyproject.toml` names the same versions in its extra `train`; a test compares the two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from worker.shared import causes, wheel
from worker.shared.bounded_process import Limits, OutOfTimeError, run
from worker.shared.pip_words import why

TRAIN = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.8.5",
    "peft": "0.21.2",
    "transformers": "5.17.0",
    "trl": "1.15.0",
}
"""What both backends need. torch is not among them: an image ships its own CUDA build, which must never be replaced."""

ALSO = ("gguf>=0.17", "hf-xet>=1.5.2")
"""What they need besides, in no version of its own. Older hf-xet can sleep for hours after one failed request."""

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

xformers is left out on purpose (see `worker.training.backends.unsloth`).
"""

KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy", "protobuf")
"""What an image ships stays as it is, unless it is named itself."""

_TRY_UNSLOTH = "from worker.training.unusable import hide; hide(); import unsloth"
_TRIAL = Limits(whole_s=300.0)


class InstallError(Exception):
    """The packages could not be brought; the message is one sentence, `cause` one of `worker.shared.causes`."""

    def __init__(self, message: str, cause: str = causes.INSTALL) -> None:
        super().__init__(message)
        self.cause = cause


# --- what is needed, and what is here ---


def every_line() -> list[str]:
    """Requirements of a worker that trains, in pip's words."""
    return [*wheel.requirements(), *wheel.requirements("train")]


def set_key(lines: Iterable[str] | None = None) -> str:
    """12 hexadecimal characters that name the set of these requirements, by default of a worker that trains."""
    wanted = "\n".join(sorted(every_line() if lines is None else lines))
    return hashlib.sha256(wanted.encode()).hexdigest()[:12]


def missing(gpu: bool) -> dict[str, str]:
    """Name and version of each package with a version of its own that is not here in just that version."""
    wanted = TRAIN | UNSLOTH if gpu else TRAIN
    return {name: version for name, version in wanted.items() if installed(name) != version}


def installed(name: str, folder: Path | None = None) -> str | None:
    """The version that is here, or in a folder of packages if there is one of it there, without importing it."""
    places = [{"path": [str(folder)]}] if folder is not None else []
    for place in [*places, {}]:
        for found in metadata.distributions(name=name, **place):
            return found.version
    return None


def kept() -> dict[str, str]:
    """Name and version of each of `KEPT` that is here."""
    return {name: version for name in KEPT if (version := installed(name))}


def lacking(requirements: Iterable[str], folder: Path | None = None) -> list[str]:
    """Those of these requirements, in pip's words, that are not met here, nor in a folder of packages."""
    return [line for line in requirements if not _is_met(line, folder)]


def _is_met(line: str, folder: Path | None) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip is always there, and brings its own
        from pip._vendor.packaging.requirements import Requirement

    wanted = Requirement(line)
    found = installed(wanted.name, folder)
    return found is not None and wanted.specifier.contains(found, prereleases=True)


# --- getting it ---


def bring(
    lines: Sequence[str],
    folder: Path | None = None,
    *,
    wheels: Path | None = None,
    resolve: bool = True,
    limits: Limits | None = None,
) -> None:
    """Install these requirements, and what they need, into a new folder; without one, into this very environment.

    What is here already stays and is counted on; nothing takes the place of what is `KEPT`. `wheels` is a folder of staged
    wheels, and nothing is fetched then. Raises `InstallError`; nothing is left in the folder's place then.
    """
    if not lines:
        return
    beside = folder.parent if folder is not None else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".packages-", dir=beside) as aside:
            _bring(lines, folder, Path(aside), wheels, resolve, limits or Limits())
    except OutOfTimeError as error:
        raise InstallError(f"pip was stopped because {error}: see that this machine's internet access works") from error
    except subprocess.CalledProcessError as error:
        raise InstallError(*why(error.output or "")) from error
    except OSError as error:
        raise InstallError(*why(str(error))) from error


def _bring(
    lines: Sequence[str], folder: Path | None, aside: Path, wheels: Path | None, resolve: bool, limits: Limits
) -> None:
    until = time.monotonic() + limits.whole_s
    exact = _resolved(lines, aside, wheels, limits) if resolve else list(lines)
    if not exact:
        return
    left = Limits(stall_s=limits.stall_s, whole_s=until - time.monotonic(), look_every_s=limits.look_every_s)
    target = ["--target", str(aside / "new")] if folder is not None else []
    # Compiling all of it takes longer than compiling what is imported.
    _pip(["--no-deps", "--no-compile", *target, *exact], aside, wheels, left)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        (aside / "new").replace(folder)


def _resolved(lines: Sequence[str], aside: Path, wheels: Path | None, limits: Limits) -> list[str]:
    """Each package that has to be installed, in its exact version.

    pip's `--target` counts on nothing that is here, so what is here has to be counted on before.
    """
    named = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
    constraints, report = aside / "constraints.txt", aside / "report.json"
    constraints.write_text("".join(f"{n}=={v}\n" for n, v in kept().items() if n not in named))
    _pip(["--dry-run", "--report", str(report), "--constraint", str(constraints), *lines], aside, wheels, limits)
    found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return [f"{package['name']}=={package['version']}" for package in found]


def _pip(words: Sequence[str], aside: Path, wheels: Path | None, limits: Limits) -> None:
    (aside / "tmp").mkdir(exist_ok=True)
    call = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    if wheels is not None:
        call += ["--no-index", "--find-links", str(wheels)]
    # Where it unpacks is where it is watched, and on the disk where the packages go.
    ours = {"TMPDIR": str(aside / "tmp"), "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    run([*call, *words], limits, watched=aside, environment=os.environ | ours)


def bring_in(wheels: Path | None, *, gpu: bool) -> dict[str, str]:
    """Install what is missing of the set into this environment and return it. Raises `InstallError`."""
    lacks = missing(gpu)
    exact = {part: [f"{n}=={v}" for n, v in lacks.items() if n in names] for part, names in _PARTS.items()}
    bring([*exact["train"], *lacking(ALSO)], wheels=wheels)
    bring(exact["unsloth"], wheels=wheels, resolve=False)
    return lacks


_PARTS = {"train": TRAIN, "unsloth": UNSLOTH}


def unsloth(wheels: Path | None = None, folder: Path | None = None) -> str:
    """Bring in the second backend, and take it away again if it cannot be imported here; returns why, or nothing.

    It goes into a folder of its own, or else into this environment.
    """
    is_there = folder is not None and all(installed(name, folder) == version for name, version in UNSLOTH.items())
    lacks = {} if is_there else missing(gpu=True)
    lines = [f"{name}=={version}" for name, version in lacks.items() if name in UNSLOTH]
    path = os.pathsep.join(filter(None, [str(folder or ""), *sys.path]))
    try:
        bring(lines, folder, wheels=wheels, resolve=False)
        run([sys.executable, "-c", _TRY_UNSLOTH], _TRIAL, environment=os.environ | {"PYTHONPATH": path})
    except (InstallError, OutOfTimeError) as error:
        problem = str(error)
    except subprocess.CalledProcessError as error:
        problem = ((error.output or "").strip().splitlines() or ["no reason was given"])[-1]
    else:
        return ""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove = ["uninstall", "--quiet", "--disable-pip-version-check", "--yes", "unsloth"]
        subprocess.run([sys.executable, "-m", "pip", *remove], check=False, capture_output=True)
    return problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Bring in what is missing and print it with the seconds it took, as one line of JSON."""
    parser = argparse.ArgumentParser(description="Install what a Trainhop worker trains with.")
    parser.add_argument("--wheels", type=Path, help="a folder of staged wheels; nothing is fetched then")
    parser.add_argument("--gpu", action="store_true", help="with the unsloth backend")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        brought = bring_in(asked.wheels, gpu=asked.gpu)
    except InstallError as error:
        raise SystemExit(f"cannot install: {error}") from error
    print(json.dumps({"installed": brought, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
