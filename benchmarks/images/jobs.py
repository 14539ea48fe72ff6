"""Whole jobs on every image that is built here, and the state of a person's notebook kernel after one."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.images.figures import PATIENCE_S, Shelf, built, desk, is_kaggles, nothing_built, server_for
from benchmarks.report import Figure
from benchmarks.tiny_job import STEPS, job_file, say
from tests.images import Image, load
from tests.notebook.tab import Tab

ADAPTERS = ("lora", "qlora")
PERSONS = ("datasets", "pyarrow", "torch", "transformers")
"""Packages that a person is likely to import."""
IMPORTS = """
import json, datasets, pyarrow, torch, transformers
from transformers.models.llama import modeling_llama
assert datasets.Dataset.from_dict({"a": [1]})[0] == {"a": 1}
print("VERSIONS " + json.dumps({m.__name__: m.__version__ for m in (datasets, pyarrow, torch, transformers)}))
"""


def every_image(folder: Path, shelf: Shelf) -> Iterator[Figure]:
    """A job for each image, adapter and backend."""
    images = built()
    if not images:
        yield nothing_built()
    for image in images:
        for adapter in ADAPTERS:
            home = Path(tempfile.mkdtemp(prefix=f"{image.name}-{adapter}-", dir=folder))
            say(f"{image.name}, {adapter}, hf ...")
            result = (
                _as_kernel(home, image, shelf, adapter)
                if is_kaggles(image)
                else _as_cell(home, image, shelf, adapter)[0]
            )
            yield Figure(
                name=f"job: {image.name}, {adapter}, hf", value=result, bar="succeeded", ok=result == "succeeded"
            )
        yield _second_backend(folder, image)


def _as_kernel(folder: Path, image: Image, shelf: Shelf, adapter: str) -> str:
    """The job's end, with the reason if it failed."""
    with desk(folder, image, shelf.folder) as there:
        job = there.submit(job_file(shelf.model, there.server.upload(shelf.rows), adapter) | {"backend": "hf"})
        ended = there.wait(job)
        tries = len(there.sessions(job))
    if image.problem:
        return image.problem
    return ended["state"] if (ended["state"], tries) == ("succeeded", 1) else f"{tries} sessions; {ended['message']}"


def _as_cell(folder: Path, image: Image, shelf: Shelf, adapter: str) -> tuple[str, str]:
    """The job's end, and the output of the person's own cell after ours."""
    with server_for(folder / "lab", shelf.folder) as server:
        file = job_file(shelf.model, server.upload(shelf.rows), adapter) | {"backend": "hf"}
        job = server.post("/jobs", file)["id"]
        tab = Tab(
            folder / "job.ipynb",
            server.post(f"/jobs/{job}:notebook"),
            before="import pyarrow, transformers\n",
            after=IMPORTS,
            jupyter=image.jupyter,
            variables=image.variables | {"OMP_NUM_THREADS": "2"},
            patience_s=PATIENCE_S,
        )
        try:
            result = tab.said
            done = f"all {STEPS} steps are complete" in result
            after = tab.said_after
        finally:
            tab.kill()
        state = server.job(job)["state"]
    return (state if done else result.splitlines()[-1]), after


def _second_backend(folder: Path, image: Image) -> Figure:
    """Whether unsloth can be imported there. Training with it needs a GPU, see `benchmarks.gpu`."""
    say(f"{image.name}, unsloth ...")
    place = Path(tempfile.mkdtemp(prefix=f"{image.name}-unsloth-", dir=folder))
    bring = (
        "import sys; from pathlib import Path; from worker.shared import package_folder, packages; "
        "here = Path(sys.argv[1]); "
        "package_folder.ready(here / 'packages', packages.every_line()); sys.path.insert(0, str(here / 'packages')); "
        "print(packages.unsloth(folder=here / 'unsloth'))"
    )
    environment = os.environ | image.variables | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [image.executable, "-c", bring, str(place)], capture_output=True, text=True, env=environment, check=False
    )
    problem = done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    result = f"not used: {problem}" if problem else "can be imported; there is no GPU here to train on"
    return Figure(
        name=f"second backend: {image.name}, unsloth",
        value=result,
        bar="imported, or said why not",
        ok=done.returncode == 0,
    )


def own_kernel(folder: Path, shelf: Shelf) -> Iterator[Figure]:
    """What a person's kernel imports after our cell, compared with the image."""
    for name in ("colab-gpu", "colab-gpu-2026-05"):
        image = load(name)
        if image.problem:
            continue
        say(f"the person's own kernel on {name} ...")
        home = Path(tempfile.mkdtemp(prefix=f"kernel-{name}-", dir=folder))
        state, after = _as_cell(home, image, shelf, "lora")
        wanted = {package: image.packages[package] for package in PERSONS}
        versions: Any = json.loads(after.partition("VERSIONS ")[2]) if "VERSIONS " in after else after.splitlines()[-1]
        ok = versions == wanted and state == "succeeded" and not image.problem
        yield Figure(name=f"own kernel after our cell: {name}", value=versions, bar=json.dumps(wanted), ok=ok)
