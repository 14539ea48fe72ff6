"""Running an image's pip and other programs while it is built."""

from __future__ import annotations

import os
import re
import subprocess

from tests.images import Image

PATIENCE_S = 1200.0


class BuildError(Exception):
    """Why an image cannot be built."""


def pip(image: Image, command: str, arguments: list[str]) -> None:
    """Run the image's pip, which keeps no second copy of gigabytes; raises `BuildError` with its errors."""
    extra = ["--extra-index-url", index] if (index := os.environ.get("TORCH_INDEX")) else []
    run([image.executable, "-m", "pip", command, "--quiet", "--no-input", "--no-cache-dir", *extra, *arguments])


def run(command: list[str]) -> str:
    """Its output; raises `BuildError`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_FIND_LINKS")}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{' '.join(command[:4])} did not end within {PATIENCE_S:.0f} s") from error
    if done.returncode:
        raise BuildError("; ".join(re.findall("ERROR: .*", done.stderr)) or done.stderr[-500:])
    return done.stdout
