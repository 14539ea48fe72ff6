"""A server with a finished job, and folders that `trainhop` is imported from: the checkout and an installed wheel."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.page_server import PageServer, page_server
from tests.http.http_client import ROWS
from trainhop.download import WEIGHTS
from trainhop.job_author import JobAuthor

ROOT = Path(__file__).parent.parent.parent
TENSORS = b"the tensors of an adapter"
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the repository's wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-c", BUILD, str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(folder / "site"), str(folder / built)], check=True)
    return folder / "site"


@pytest.fixture(params=["checkout", "wheel"])
def site(request: pytest.FixtureRequest) -> Path:
    """Where `trainhop` lies."""
    return ROOT if request.param == "checkout" else request.getfixturevalue("installed")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A person's folder, with files of their own whose names are those of our packages, and data."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("worker", "orchestrator"):
        (folder / f"{name}.py").write_text(f"whose = 'the person'\nname = {name!r}\n")
    (folder / "rows.jsonl").write_bytes(ROWS)
    return folder


@dataclass(frozen=True)
class Person:
    """Runs Python in `folder` as a notebook's kernel does: the current folder comes first on its path."""

    folder: Path
    site: Path
    server: str = ""
    token: str = ""

    def __call__(self, *command: str, code: int = 0) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINHOP_", "PYTHON"))}
        variables = {"TRAINHOP_SERVER_URL": self.server, "TRAINHOP_TOKEN": self.token, "PYTHONPATH": str(self.site)}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=kept | variables | {"TRAINHOP_DATA_DIR": str(self.folder / "none")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def python(self, program: str) -> str:
        """What the program prints."""
        return self("-c", program)


def finish(server: PageServer, folder: Path, last_step: int) -> None:
    """Play the machine that takes the queued job: it saves, and brings an adapter that can be unpacked."""
    machine = server.machine()
    machine.save(last_step, folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(WEIGHTS, TENSORS)
        archive.writestr("adapter_config.json", "{}")
    said = machine.finish(last_step, packed.getvalue(), adapter_sha256=sha256(TENSORS).hexdigest())
    assert said.status_code == 204, said.text


@contextmanager
def with_a_finished_job(folders: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A real server on a port of its own, whose first job, called `finished`, has succeeded."""
    with page_server(folders.mktemp("server")) as running:
        running.api.admin.submit(name="finished")
        finish(running, folders.mktemp("machine"), 10)
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with with_a_finished_job(tmp_path_factory) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a person who is signed in nowhere."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    return tmp_path


@pytest.fixture
def job(folder: Path) -> dict[str, Any]:
    """A job file with its rows, and with as much of a model as is read before a job begins."""
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    return {"base_model": str(base), "datasets": [{"path": "rows.jsonl"}], "max_steps": 9, "lora_r": 4}


@pytest.fixture
def author(job: dict[str, Any], folder: Path) -> Any:
    """Resolves that job file, changed as asked, without a server."""
    return lambda **changes: JobAuthor("job.yaml", job | changes, folder)
