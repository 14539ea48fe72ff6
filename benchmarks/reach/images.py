"""Cells without a server in environments like Colab's and Kaggle's machines, which `make images` builds.

The kernel has only what a person has there: Colab a sign-in to Google Drive, Kaggle a token of the Hub as a secret.
Both places are emulated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from benchmarks.reach.cells import TOKEN, Drive, HubEmulator
from benchmarks.report import Figure
from benchmarks.tiny_job import job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.images import FOLDER, IN_CI, Image, load
from tests.notebook.tab import Tab

STEPS = 4
PATIENCE_S = 580
ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
BEFORE = """
import os, sys, types
sys.path.insert(0, {site!r})  # what `%pip install -q --no-deps trainhop` does
{person}
import pyarrow, transformers
before = set(sys.modules)
"""
CLICK = """
colab, auth = types.ModuleType("google.colab"), types.ModuleType("google.colab.auth")
auth.authenticate_user = lambda: os.environ.update(TRAINHOP_DRIVE_TOKEN={token!r})  # a person clicks
colab.auth = auth
sys.modules |= {{"google.colab": colab, "google.colab.auth": auth}}
"""
SECRET = """
secrets = types.ModuleType("kaggle_secrets")
secrets.UserSecretsClient = lambda: types.SimpleNamespace(get_secret={{"HF_TOKEN": {token!r}}}.__getitem__)
sys.modules["kaggle_secrets"] = secrets
"""
AFTER = """
import json
print("NEW " + json.dumps(sorted({m.partition(".")[0] for m in set(sys.modules) - before})))
print("VERSIONS " + json.dumps({m.__name__: m.__version__ for m in (pyarrow, transformers)}))
"""
OURS = {"torch", "peft", "trl", "orchestrator", "datasets", "accelerate"}


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the notebook showed, and why the person's kernel is not as it was, or ""."""

    cell: str
    changed: str


def figures(folder: Path) -> Iterator[Figure]:
    """One cell in each image of CI."""
    built = [image for name in IN_CI if not (image := load(name)).problem]
    if len(built) < len(IN_CI):
        yield Figure(name="images", value=f"not all in {FOLDER}: run `make images`", bar="built", ok=False)
    site = installed(folder)
    for image in built:
        here = folder / image.name
        here.mkdir()
        said = cell_in(image, site, here)
        finished = next((line for line in said.cell.splitlines() if f"Finished at step {STEPS}." in line), "")
        value = said.changed or ("runs, kernel unchanged" if finished else said.cell[-400:])
        yield Figure(
            name=f"a cell in {image.title}'s image",
            value=value,
            bar="runs, kernel unchanged",
            ok=bool(finished) and not said.changed,
        )


def installed(folder: Path) -> Path:
    """A folder with the wheel of this repository, and nothing else."""
    build = [sys.executable, "-c", BUILD, str(folder)]
    wheel = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(folder / "site"), str(folder / wheel)], check=True)
    return folder / "site"


def cell_in(image: Image, site: Path, folder: Path) -> Said:
    """Run the cell of a person who has this machine and no server. `site` has the distribution."""
    job = job_file(make_tiny_llama(folder / "model"), str(write_rows(folder / "rows.jsonl")), "lora")
    variables = {"OMP_NUM_THREADS": "1", "HF_TOKEN": "", "HF_HOME": str(folder), **image.variables}
    if image.name.startswith("colab"):
        with Drive(folder / "drive") as drive:
            variables |= {"COLAB_RELEASE_TAG": "release", "HF_HUB_OFFLINE": "1"}
            variables |= {"TRAINHOP_DRIVE_ENDPOINT": drive.url, "TRAINHOP_DRIVE_SETTLE_S": "0"}
            return _run(image, site, folder, job, CLICK.format(token=drive.tokens.sign_in()), variables)
    with HubEmulator() as hub:
        hub.accounts[TOKEN] = "ann"
        variables |= {**hub.environment(folder), "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}
        return _run(image, site, folder, job, SECRET.format(token=TOKEN), variables)


def _run(image: Image, site: Path, folder: Path, job: dict[str, Any], person: str, variables: dict[str, str]) -> Said:
    cell = nbformat.v4.new_code_cell(f"import trainhop\n\ntrainhop.run({job | {'max_steps': STEPS}!r})")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(), cell])
    tab = Tab(
        folder / "tab.ipynb",
        {"notebook": json.loads(json.dumps(notebook))},
        before=BEFORE.format(site=str(site), person=person),
        after=AFTER,
        jupyter=image.jupyter,
        variables=variables,
        patience_s=PATIENCE_S,
    )
    try:
        return Said(cell=tab.said, changed=_changed(image, tab.said_after))
    finally:
        tab.kill()


def _changed(image: Image, after: str) -> str:
    told = dict(line.split(" ", 1) for line in after.splitlines() if " " in line)
    if not {"NEW", "VERSIONS"} <= told.keys():
        return f"the cell behind failed: {after[-300:]}"
    versions: dict[str, str] = json.loads(told["VERSIONS"])
    other = [name for name, version in versions.items() if image.packages[name] != version]
    loaded = sorted(OURS & set(json.loads(told["NEW"])))
    faults = [*(f"{name} has another version" for name in other), *(f"{name} was imported" for name in loaded)]
    return "; ".join([*faults, *([image.problem] if image.problem else [])])
