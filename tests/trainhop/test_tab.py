"""The cell of somebody who has Colab and nothing else: no server, no Hugging Face token, only their Google Drive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from benchmarks.tiny_job import job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.emulators.drive import Drive
from tests.images import Image
from tests.notebook.tab import Tab
from worker.shared.packages import TRAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIGN_IN = """
import os, sys, types
sys.path.insert(0, {site!r})  # what `%pip install -q --no-deps trainhop` does
colab, auth = types.ModuleType("google.colab"), types.ModuleType("google.colab.auth")
auth.authenticate_user = lambda: os.environ.update(TRAINHOP_DRIVE_TOKEN={token!r})  # a person clicks
colab.auth = auth
sys.modules |= {{"google.colab": colab, "google.colab.auth": auth}}
import pyarrow, transformers
before = set(sys.modules)
"""
AFTER = """
import json
print("NEW " + json.dumps(sorted({m.partition(".")[0] for m in set(sys.modules) - before})))
print("VERSIONS " + json.dumps({m.__name__: m.__version__ for m in (pyarrow, transformers)}))
"""


def test_a_tab_trains_with_google_drive_alone(
    image: Callable[[str], Image], installed: Path, drive: Drive, tmp_path: Path
) -> None:
    machine = image("colab-gpu")
    job = job_file(make_tiny_llama(tmp_path / "model"), str(write_rows(tmp_path / "rows.jsonl")), "lora")
    cell = nbformat.v4.new_code_cell(f"import trainhop\n\ntrainhop.run({job | {'max_steps': 4}!r})")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(), cell])
    made = {"notebook": json.loads(json.dumps(notebook))}
    variables = {"OMP_NUM_THREADS": "1", "TRAINHOP_DRIVE_ENDPOINT": drive.url, "TRAINHOP_DRIVE_SETTLE_S": "0"}
    variables |= {"COLAB_RELEASE_TAG": "release-colab", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_HOME": str(tmp_path)}
    before = SIGN_IN.format(site=str(installed), token=drive.tokens.sign_in())
    tab = Tab(
        tmp_path / "tab.ipynb",
        made,
        before=before,
        after=AFTER,
        jupyter=machine.jupyter,
        variables=machine.variables | variables,
        patience_s=500,
    )
    try:
        assert "Shared place: drive://trainhop-exact-lora (there is no Hugging Face token, and Colab can" in tab.said
        assert "Finished at step 4. The adapter is in drive://trainhop-exact-lora/adapter." in tab.said, tab.said
        told = dict(line.split(" ", 1) for line in tab.said_after.splitlines())
    finally:
        tab.kill()
    names = {file.title for file in drive.files()}
    assert {"adapter/adapter_model.safetensors", "documents/RESULT.json"} <= names
    assert json.loads(told["VERSIONS"]) == {name: machine.packages[name] for name in ("pyarrow", "transformers")}
    assert machine.packages["transformers"] != TRAIN["transformers"]
    assert not {"torch", "peft", "trl", "orchestrator", "datasets"} & set(json.loads(told["NEW"]))
    assert not machine.problem  # nothing in it was replaced
