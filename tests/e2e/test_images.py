"""One job through each house's machine as it is published: other versions of nearly everything, and hooks of its
own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import STEPS, finished, job_file
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.images import Image
from tests.notebook.tab import Tab
from worker.shared import checkpoint_file
from worker.shared.packages import TRAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_S = 400.0
IMPORTS = """
import json, datasets, pyarrow, torch, transformers
from transformers.models.llama import modeling_llama
assert datasets.Dataset.from_dict({"a": [1]})[0] == {"a": 1}
print("VERSIONS " + json.dumps({m.__name__: m.__version__ for m in (datasets, pyarrow, torch, transformers)}))
"""


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """Where the images' TensorFlow notes who imports it."""
    return tmp_path / "tensorflow-imports"


def _server(folder: Path, model: Path, **settings: Any) -> Any:
    allowed = json.dumps([str(model.parent)])
    return lab(
        folder, allowed_folders=allowed, offline=True, local_slots=0, report_every_s=1, reconcile_s=0.5, **settings
    )


def _versions(server: Lab, job: str, folder: Path) -> dict[str, str]:
    """What the job's last checkpoint was written with."""
    head = server.job(job)["head"]
    file = folder / "head.safetensors"
    file.write_bytes(server.client.get(f"/jobs/{job}/checkpoints/{head['sha256']}/file").content)
    return checkpoint_file.load(file)[1].versions


def test_a_kernel_in_kaggles_image_trains_to_the_end(
    image: Callable[[str], Image], model_and_rows: tuple[Path, Path], tmp_path: Path, noted: Path
) -> None:
    """The image's peft and torchao cannot be imported together; ours has to train beside them, and leave them alone.

    Guard: without the table of packages that our set cannot use, four kernels in a row ended with peft's `ImportError:
    Found an incompatible version of torchao`.
    """
    machine = image("kaggle-gpu")
    variables = machine.variables | {"OMP_NUM_THREADS": "1", "TRAINHOP_TEST_TENSORFLOW_IMPORTS": str(noted)}
    people = [Person(name="alice", token="KGAT_alice")]
    with (
        KaggleEmulator(tmp_path / "kaggle", people, python=machine.executable, environment=variables) as kaggle,
        _server(tmp_path / "lab", model_and_rows[0], kaggle_endpoint=kaggle.endpoint) as server,
    ):
        asked = {"provider": "kaggle", "config": {"username": "alice"}, "credentials": "KGAT_alice"}
        server.post("/accounts", asked)
        job = server.post("/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora"))["id"]
        server.wait_for(lambda: finished(server, job), "the job's end", PATIENCE_S, 0.2)
        (session,) = server.get(f"/jobs/{job}/sessions")["items"]
        assert (session["outcome"], session["last_step"]) == ("completed", STEPS)
        used = _versions(server, job, tmp_path)
    assert used["torch"] == machine.packages["torch"]
    assert used["transformers"] == TRAIN["transformers"] != machine.packages["transformers"]
    assert not machine.problem  # nothing in it was replaced
    assert not noted.exists()


def test_a_cell_in_colabs_image_trains_and_leaves_the_kernel_as_it_was(
    image: Callable[[str], Image], model_and_rows: tuple[Path, Path], tmp_path: Path, noted: Path
) -> None:
    """The person has imported some packages before our cell, and imports others after it.

    Guard: with our packages installed over the image's own, `datasets` could not be imported behind the cell
    (`pyarrow.lib.IpcReadOptions size changed`).
    """
    machine = image("colab-gpu")
    variables = machine.variables | {"OMP_NUM_THREADS": "1", "TRAINHOP_TEST_TENSORFLOW_IMPORTS": str(noted)}
    with _server(tmp_path / "lab", model_and_rows[0]) as server:
        job = server.post("/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora"))["id"]
        made = server.post(f"/jobs/{job}:notebook")
        tab = Tab(
            tmp_path / "0.ipynb",
            made,
            before="import pyarrow, transformers\n",
            after=IMPORTS,
            jupyter=machine.jupyter,
            variables=variables,
        )
        try:
            assert f"Succeeded: all {STEPS} steps are complete" in tab.said, tab.said
            told = tab.said_after
        finally:
            tab.kill()
        assert server.job(job)["state"] == "succeeded"
        used = _versions(server, job, tmp_path)
    assert "VERSIONS " in told, told
    names = ("datasets", "pyarrow", "torch", "transformers")
    assert json.loads(told.partition("VERSIONS ")[2]) == {name: machine.packages[name] for name in names}
    assert used["torch"] == machine.packages["torch"]
    assert used["transformers"] == TRAIN["transformers"] != machine.packages["transformers"]
    assert not machine.problem
    assert not noted.exists()
