"""The package set that every worker trains with, and its installation.

Standard library only, because it runs before anything is installed. Start scripts and notebooks call it. People run
`python -m worker.install [--wheels FOLDER] [--gpu]`. `pyproject.toml` lists the same versions in its extra `train`. A
test compares the two.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from worker.shared import causes, wheel
from worker.shared.bounded_process import Limits, OutOfTimeError, run
from worker.shared.files import move_into_place, temporary_folder
from worker.shared.pip_words import why
from worker.shared.process import last_line

TRAIN = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.8.5",
    "peft": "0.21.2",
    "transformers": "5.17.0",
    "trl": "1.15.0",
}
"""What both backends need. torch is not included: an image has its own CUDA build, which must not be replaced."""

ALSO = ("gguf>=0.17", "hf-xet>=1.5.2")
"""Further requirements without an exact version. Older hf-xet can sleep for hours after one failed request."""

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
"""Further packages of the `unsloth` backend, installed without dependency resolution.

Their requirements cannot all be met at once. xformers is left out on purpose (see `worker.training.backends.unsloth`).
"""

HARNESS = "lm-eval==0.4.13"
"""What asks the benchmarks of an evaluation, installed only where a job has some."""

KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy", "protobuf")
"""Packages of the image that are not replaced unless they are requested by name."""

_TRY_UNSLOTH = "from worker.training.unusable import hide; hide(); import unsloth"
_TRIAL = Limits(whole_s=300.0)


class InstallError(Exception):
    """The packages could not be installed. The message is one sentence that says what to do.

    `cause` is one of `worker.shared.causes`.
    """

    def __init__(self, message: str, cause: str = causes.INSTALL) -> None:
        super().__init__(message)
        self.cause = cause


# --- required and installed packages ---


def every_line() -> list[str]:
    """Requirements of a worker that trains, in pip's syntax."""
    return [*wheel.requirements(), *wheel.requirements("train")]


def set_key(lines: Iterable[str] | None = None) -> str:
    """12 hexadecimal characters that identify these requirements, by default those of a worker that trains."""
    wanted = "\n".join(sorted(every_line() if lines is None else lines))
    return hashlib.sha256(wanted.encode()).hexdigest()[:12]


def missing(gpu: bool) -> dict[str, str]:
    """Name and version of each pinned package that is not installed in exactly that version."""
    wanted = TRAIN | UNSLOTH if gpu else TRAIN
    return {name: version for name, version in wanted.items() if installed(name) != version}


def installed(name: str, folder: Path | None = None) -> str | None:
    """The installed version, from `folder` if the package is there, else from this environment. Imports nothing."""
    places = [{"path": [str(folder)]}] if folder is not None else []
    for place in [*places, {}]:
        for found in metadata.distributions(name=name, **place):
            return found.version
    return None


def kept() -> dict[str, str]:
    """Name and version of each installed package in `KEPT`."""
    return {name: version for name in KEPT if (version := installed(name))}


def lacking(requirements: Iterable[str], folder: Path | None = None) -> list[str]:
    """The requirements, in pip's syntax, that neither this environment nor the folder meets."""
    return [line for line in requirements if not _is_met(line, folder)]


def _is_met(line: str, folder: Path | None) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip is always installed and contains a copy
        from pip._vendor.packaging.requirements import Requirement

    wanted = Requirement(line)
    found = installed(wanted.name, folder)
    return found is not None and wanted.specifier.contains(found, prereleases=True)


# --- installation ---


def bring(
    lines: Sequence[str],
    folder: Path | None = None,
    *,
    wheels: Path | None = None,
    resolve: bool = True,
    limits: Limits | None = None,
) -> None:
    """Install these requirements and their dependencies into a new folder, or into this environment without one.

    Installed packages are kept and count as present, and `KEPT` packages are not replaced. `wheels` is a folder of
    staged wheels, and nothing is downloaded then. Raises `InstallError` and leaves no folder in that case.
    """
    if not lines:
        return
    beside = folder.parent if folder is not None else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(".packages-", beside) as aside:
            _bring(lines, folder, aside, wheels, resolve, limits or Limits())
    except OutOfTimeError as error:
        raise InstallError(
            f"pip was stopped because {error}: check the machine's internet access, then retry the job"
        ) from error
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
    # Compiling every module takes longer than compiling the imported ones on demand.
    _pip(["--no-deps", "--no-compile", *target, *exact], aside, wheels, left)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        move_into_place(aside / "new", folder, durable=False)


def _resolved(lines: Sequence[str], aside: Path, wheels: Path | None, limits: Limits) -> list[str]:
    """Each package that has to be installed, with its exact version.

    pip's `--target` ignores installed packages, so they are taken into account before.
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
    # pip unpacks in the watched folder, on the disk where the packages are installed.
    ours = {"TMPDIR": str(aside / "tmp"), "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    run([*call, *words], limits, watched=aside, environment=os.environ | ours)


def bring_in(wheels: Path | None, *, gpu: bool) -> dict[str, str]:
    """Install the missing packages into this environment and return them. Raises `InstallError`."""
    lacks = missing(gpu)
    exact = {part: [f"{n}=={v}" for n, v in lacks.items() if n in names] for part, names in _PARTS.items()}
    bring([*exact["train"], *lacking(ALSO)], wheels=wheels)
    bring(exact["unsloth"], wheels=wheels, resolve=False)
    return lacks


_PARTS = {"train": TRAIN, "unsloth": UNSLOTH}


def unsloth(wheels: Path | None = None, folder: Path | None = None, *, versions: Mapping[str, str] = UNSLOTH) -> str:
    """Install the second backend in these `versions`. Returns the reason why it cannot be imported here, or "".

    In that case it is removed again. It is installed into its own folder, or else into this environment.
    """
    is_there = folder is not None and all(installed(name, folder) == version for name, version in versions.items())
    lacks = {} if is_there else {n: version for n, version in versions.items() if installed(n) != version}
    lines = [f"{name}=={version}" for name, version in lacks.items()]
    path = os.pathsep.join(filter(None, [str(folder or ""), *sys.path]))
    try:
        bring(lines, folder, wheels=wheels, resolve=False)
        run([sys.executable, "-c", _TRY_UNSLOTH], _TRIAL, environment=os.environ | {"PYTHONPATH": path})
    except (InstallError, OutOfTimeError) as error:
        problem = str(error)
    except subprocess.CalledProcessError as error:
        problem = last_line(error.output or "")
    else:
        return ""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove = ["uninstall", "--quiet", "--disable-pip-version-check", "--yes", "unsloth"]
        with contextlib.suppress(OutOfTimeError, subprocess.CalledProcessError):
            run([sys.executable, "-m", "pip", *remove], _TRIAL)
    return problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Install the missing packages. Prints them and the seconds it took as one line of JSON."""
    parser = argparse.ArgumentParser(description="Install what a Trainhop worker trains with.")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install from, without downloads")
    parser.add_argument("--gpu", action="store_true", help="with the unsloth backend")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        packages = bring_in(options.wheels, gpu=options.gpu)
    except InstallError as error:
        raise SystemExit(f"cannot install: {error}") from error
    print(json.dumps({"installed": packages, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
