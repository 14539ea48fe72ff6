"""Installs lm-eval, which asks the benchmarks of an evaluation, on a machine that a job with benchmarks runs on."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from worker.shared import causes, package_folder, packages
from worker.training.interface import UnfitMachineError


def install(wanted: str = packages.HARNESS, bring: Callable[..., None] = packages.bring) -> None:
    """Install lm-eval (`wanted`, in pip's syntax) if it is not there and the session may install packages.

    It gets a folder beside that of the session's packages, which comes last on the path, so that what the image or the
    session has stays in use. Raises `UnfitMachineError` if it is still not there.
    """
    folder = os.environ.get(package_folder.FOLDER, "")
    own = Path(f"{folder}-lm-eval") if folder else None
    if packages.lacking([wanted]):
        _bring(wanted, own, bring)
    if own is not None and own.is_dir() and str(own) not in sys.path:
        sys.path.append(str(own))
    importlib.invalidate_caches()


def _bring(wanted: str, own: Path | None, bring: Callable[..., None]) -> None:
    if own is not None and not packages.lacking([wanted], own):
        return
    source = os.environ.get("WORKER_MAY_INSTALL", "")
    if not source:
        raise UnfitMachineError(
            f"the benchmarks of this evaluation need {wanted}, which is not installed here; install "
            "'trainhop[benchmarks]' on this machine, or evaluate without benchmarks",
            causes.INSTALL,
        )
    try:
        bring([wanted], own, wheels=None if source == "1" else Path(source))
    except packages.InstallError as error:
        raise UnfitMachineError(f"{wanted} could not be installed: {error}", error.cause) from error
