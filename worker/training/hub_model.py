"""Downloads a base model from the hub in a child process.

The process is watched, killed if it stalls, and the download is retried once without Xet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from worker.agent.limits import Limits, bounded
from worker.shared import causes
from worker.training import fetch_model
from worker.training.fetch_model import DownloadResult
from worker.training.interface import PermanentError, UnfitMachineError

_MAX_RETRY_AFTER_S = 3_600.0


def bring(name: str, limits: Limits, say: Callable[[str], None]) -> Path:
    """Folder of a hub model `org/name[@revision]`, downloaded if it is not cached.

    `say` is called with the reason for each wait. Raises `PermanentError` with the id and the remedy. Raises
    `UnfitMachineError` if another machine or a later attempt may succeed.
    """
    from huggingface_hub import constants

    if (folder := fetch_model.cached(name)) is not None:
        return folder
    if constants.HF_HUB_OFFLINE:
        return _folder(name, fetch_model.attempt(name), limits)
    pause_s, by_xet = limits.pause_s, True
    while True:
        result = _in_a_child(name, by_xet, limits)
        if result.kind == "limited":
            wait_s = min(result.wait_s or pause_s, _MAX_RETRY_AFTER_S)
            pause_s = min(2 * pause_s, limits.longest_pause_s)
            say(f"Hugging Face limits requests from this address; the download of {name} resumes in {wait_s:.0f} s")
            time.sleep(wait_s)
        elif result.kind in ("stalled", "away") and by_xet:
            say(f"the download of {name} failed ({result.words}); retrying by plain HTTP")
            by_xet = False
        else:
            return _folder(name, result, limits)


def _in_a_child(name: str, by_xet: bool, limits: Limits) -> DownloadResult:
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({} if by_xet else {"HF_HUB_DISABLE_XET": "1"})
    command = [sys.executable, "-m", "worker.training.fetch_model", name]
    printed = bounded(command, environment, moved=lambda: _bytes_here(name), stall_s=limits.stall_s)
    if printed is None:
        return DownloadResult(kind="stalled", words=f"no byte arrived for {limits.stall_s:.0f} s")
    try:
        return DownloadResult(**json.loads(printed.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return DownloadResult(kind="away", words="the download process ended without a message")


def _bytes_here(name: str) -> int:
    """Downloaded bytes of a model, complete or not. Includes disk blocks, since a file's size may be set in advance."""
    from huggingface_hub import constants

    repository = name.partition("@")[0]
    cache = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    staging = Path(getattr(constants, "HF_XET_CACHE", cache))
    total = 0
    for folder in {cache, staging}:
        for place, _, files in os.walk(folder):
            for file in files:
                try:
                    status = os.lstat(os.path.join(place, file))  # noqa: PTH118  thousands of them, twice a second

                except FileNotFoundError:
                    continue
                total += status.st_size + 512 * status.st_blocks
    return total


def _folder(name: str, result: DownloadResult, limits: Limits) -> Path:
    page = f"https://huggingface.co/{name.partition('@')[0]}"
    match result.kind:
        case "folder":
            return Path(result.words)
        case "missing":
            raise PermanentError(
                f"base model {name} was not found as a folder or on Hugging Face ({result.words}); "
                "check the name. For a gated or private model, store a token: `trainhop hub login`"
            )
        case "gated":
            raise PermanentError(
                f"base model {name} is gated or private ({result.words}); accept its terms on {page} "
                "and store a token: `trainhop hub login`"
            )
        case "full":
            raise UnfitMachineError(result.words, causes.DISK)
        case "stalled":
            raise UnfitMachineError(
                f"the download of {name} stalled: no byte arrived for {limits.stall_s:.0f} s, "
                "not by plain HTTP either; check that this machine reaches the hub, then retry the job",
                causes.MODEL,
            )
        case _:
            raise UnfitMachineError(
                f"base model {name} is not on this machine and could not be downloaded from Hugging Face "
                f"({result.words}); check that this machine reaches the hub, then retry the job",
                causes.MODEL,
            )
