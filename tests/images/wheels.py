"""The wheels of our own set for an image's Python, so that tests install it without a network, as fast as a disk is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from tests.images import Image
from tests.images.commands import pip, run
from worker.shared.packages import KEPT, UNSLOTH, every_line

_VERSIONS = (
    "import importlib.metadata, json, sys; print(json.dumps({n: importlib.metadata.version(n) for n in sys.argv[1:]}))"
)


def gather(image: Image) -> str:
    """Fetch what pip would install there, unless it was fetched before; returns what was done. Raises `BuildError`."""
    set_of_ours = every_line()
    exact = [f"{name}=={version}" for name, version in UNSLOTH.items()]
    key = hashlib.sha256(json.dumps([set_of_ours, exact, image.marker.read_text()]).encode()).hexdigest()
    done = image.wheels / f"{image.name}.done"
    if done.exists() and done.read_text() == key:
        return "its wheels gathered before"
    image.wheels.mkdir(parents=True, exist_ok=True)
    wanted = [*_resolved(image, set_of_ours), *exact]
    pip(image, "download", ["--no-deps", "--only-binary", ":all:", "--dest", str(image.wheels), *wanted])
    done.write_text(key)
    return f"{len(wanted)} wheels gathered"


def _resolved(image: Image, lines: list[str]) -> list[str]:
    """What pip would bring there beside what the image keeps, as exact versions."""
    kept = json.loads(run([image.executable, "-c", _VERSIONS, *KEPT]))
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "kept.txt", Path(folder) / "report.json"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
        pip(image, "install", ["--dry-run", "--report", str(report), "--constraint", str(constraints), *lines])
        brought = json.loads(report.read_text())["install"]
    return [f"{one['metadata']['name']}=={one['metadata']['version']}" for one in brought]
