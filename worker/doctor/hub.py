"""Checks whether a public file of the Hugging Face hub can be downloaded by Xet and by plain HTTP.

Each download runs in its own process, with a limit. `python -m worker.doctor.hub REPO FILE` fetches one file into a
fresh cache and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from worker.doctor.outcome import ProbeError
from worker.shared.process import last_line, tied


def hub(repo: str, file: str, limit_s: float, environment: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Fetch the file both ways. `HF_ENDPOINT` is respected, as in a session."""
    ways = {"xet": {}, "http": {"HF_HUB_DISABLE_XET": "1"}}
    plain = {name: value for name, value in environment.items() if name != "HF_HUB_DISABLE_XET"}
    data = {name: _fetched(repo, file, limit_s, plain | more) for name, more in ways.items()}
    broken = {name: way["problem"] for name, way in data.items() if "problem" in way}
    if broken:
        names = {"xet": "by Xet", "http": "by plain HTTP"}
        raise ProbeError("; ".join(f"{names[name]}: {why}" for name, why in broken.items()), **data)
    speeds = ", ".join(f"{name} {way['bytes'] / 1e6:.1f} MB in {way['seconds']:.1f} s" for name, way in data.items())
    return f"Hugging Face serves a public file both ways ({speeds})", data


def _fetched(repo: str, file: str, limit_s: float, environment: dict[str, str]) -> dict[str, Any]:
    began = time.monotonic()
    command = [sys.executable, "-m", "worker.doctor.hub", repo, file]
    with tempfile.TemporaryDirectory(prefix="trainhop-hub-") as cache:
        try:
            done = subprocess.run(
                tied(command),
                env=environment | {"HF_HOME": cache, "HF_HUB_OFFLINE": "0"},
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"no data within {limit_s:.0f} s"}
    if done.returncode:
        return {"problem": last_line(done.stderr)[:200]}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Fetch one file. Prints its size, and whether Xet downloaded it, as JSON."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    repo, file = sys.argv[1:]
    found = get_hf_file_metadata(hf_hub_url(repo, file), timeout=10)
    path = Path(hf_hub_download(repo, file))
    by_xet = not constants.HF_HUB_DISABLE_XET and getattr(found, "xet_file_data", None) is not None
    print(json.dumps({"bytes": path.stat().st_size, "by_xet": by_xet}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    main()
