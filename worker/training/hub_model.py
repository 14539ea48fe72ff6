"""A base model from the hub: brought by a child process that is watched, killed when it stalls, and tried once more without Xet."""

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
from worker.training.fetch_model import Answer
from worker.training.interface import PermanentError, UnfitMachineError

_MAX_RETRY_AFTER_S = 3_600.0


def bring(name: str, limits: Limits, say: Callable[[str], None]) -> Path:
    """Folder of a model of the hub, `org/name[@revision]`, downloaded unless it is cached; `say` hears of every wait.

    Raises `PermanentError` naming the id and the remedy, and `UnfitMachineError` where another machine, or a later day, may
    do better.
    """
    from huggingface_hub import constants

    if (folder := fetch_model.cached(name)) is not None:
        return folder
    if constants.HF_HUB_OFFLINE:
        return _folder(name, fetch_model.attempt(name), limits)
    pause_s, by_xet = limits.pause_s, True
    while True:
        answer = _in_a_child(name, by_xet, limits)
        if answer.kind == "limited":
            wait_s = min(answer.wait_s or pause_s, _MAX_RETRY_AFTER_S)
            pause_s = min(2 * pause_s, limits.longest_pause_s)
            say(f"the hub limits requests from this address; the download of {name} goes on in {wait_s:.0f} s")
            time.sleep(wait_s)
        elif answer.kind in ("stalled", "away") and by_xet:
            say(f"the download of {name} failed ({answer.words}); it is tried again by plain HTTP")
            by_xet = False
        else:
            return _folder(name, answer, limits)


def _in_a_child(name: str, by_xet: bool, limits: Limits) -> Answer:
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({} if by_xet else {"HF_HUB_DISABLE_XET": "1"})
    command = [sys.executable, "-m", "worker.training.fetch_model", name]
    printed = bounded(command, environment, moved=lambda: _bytes_here(name), stall_s=limits.stall_s)
    if printed is None:
        return Answer(kind="stalled", words=f"no byte arrived for {limits.stall_s:.0f} s")
    try:
        return Answer(**json.loads(printed.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return Answer(kind="away", words="the process that downloads it ended without a word")


def _bytes_here(name: str) -> int:
    """What has arrived of a model, finished or not; a file whose size is set in advance still grows in blocks."""
    from huggingface_hub import constants

    repository = name.partition("@")[0]
    cache = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    staging = Path(getattr(constants, "HF_XET_CACHE", cache))
    total = 0
    for folder in {cache, staging}:
        for place, _, files in os.walk(folder):
            for file in files:
                try:
                    found = os.lstat(os.path.join(place, file))  # noqa: PTH118  thousands of them, twice a second
                except FileNotFoundError:
                    continue
                total += found.st_size + 512 * found.st_blocks
    return total


def _folder(name: str, answer: Answer, limits: Limits) -> Path:
    page = f"https://huggingface.co/{name.partition('@')[0]}"
    match answer.kind:
        case "folder":
            return Path(answer.words)
        case "missing":
            raise PermanentError(
                f"base model {name} was found neither as a folder nor on the hub ({answer.words}); check the name, and for a "
                "gated or private model store a token with the server: `trainhop hub login`"
            )
        case "gated":
            raise PermanentError(
                f"base model {name} is gated or private ({answer.words}); accept its terms on {page} and store a token with "
                "the server: `trainhop hub login`"
            )
        case "full":
            raise UnfitMachineError(answer.words, causes.DISK)
        case "stalled":
            raise UnfitMachineError(
                f"the download of {name} stalled: no byte arrived for {limits.stall_s:.0f} s, by plain HTTP either; the job is "
                "tried again later",
                causes.MODEL,
            )
        case _:
            raise UnfitMachineError(
                f"base model {name} is not on this machine and cannot be fetched from the hub now ({answer.words})",
                causes.MODEL,
            )
