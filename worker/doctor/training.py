"""Probes of training on this machine: does it install, does it train, and is it reproducible byte for byte?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from worker.doctor.outcome import ProbeError
from worker.shared import causes
from worker.shared.process import tied


def training(limit_s: float, environment: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Train a LoRA for some steps on a model made on the spot."""
    found = _trained("lora", limit_s, environment)
    where = f"{found['gpus']} x {found['gpu']}" if found["gpus"] else "the CPU"
    words = f"training works on this image ({len(found['losses'])} steps in {found['precision']} on {where})"
    return words, found


def equal_bytes(limit_s: float, environment: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Train the same NF4 LoRA in two new processes: in fp16 with the loss scaler on a T4, in fp32 on a CPU."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: _trained("qlora", limit_s, environment), range(2))
    data = {"precision": first["precision"], "device": first["device"]}
    data["equal"] = first["adapter_sha256"] == second["adapter_sha256"]
    data["losses"] = [first["losses"], second["losses"]]
    how = "fp16 and a loss scaler" if first["precision"] == "fp16" else first["precision"]
    if first["device"] == "cpu":
        how += " (the closest that a CPU supports)"
    if not data["equal"]:
        raise ProbeError(f"NF4 with {how}: two runs of the same steps gave different bytes", **data)
    return f"NF4 with {how}: two runs of the same steps gave equal bytes", data


def _trained(adapter: str, limit_s: float, environment: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="trainhop-check-") as folder:
        command = [sys.executable, "-m", "worker.doctor.tiny", adapter, str(Path(folder))]
        try:
            done = subprocess.run(
                tied(command),
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            words = f"{adapter}: a few steps of a tiny model took longer than {limit_s:.0f} s"
            raise ProbeError(words, cause=causes.SMOKE) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        said = last.removeprefix("worker.training.interface.UnfitMachineError: ")
        raise ProbeError(f"{adapter}: training does not work on this image: {said}", cause=causes.SMOKE)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if not found["complete"]:
        raise ProbeError(f"{adapter}: training ended before its last step", cause=causes.SMOKE, **found)
    return found
