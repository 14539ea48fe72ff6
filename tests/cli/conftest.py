from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.entrypoints.cli.main import app
from tests.emulators.hub import HubEmulator
from tests.helpers.evaluations import add_evaluation, tasks
from tests.helpers.page_server import PageServer, page_server

# A shell starts its background jobs deaf to SIGINT, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

HUB_TOKEN, OPERATORS = "hf_canary_of_the_admin", "hf_canary_of_the_operator"
ROWS = '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAINHOP_")}
    return kept | {"HF_HUB_OFFLINE": "1"} | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.entrypoints.cli.main", *arguments]


@dataclass(frozen=True)
class Shell:
    """Runs `trainhop` as a process of its own, the way people do."""

    folder: Path
    data_dir: Path
    models: Path
    patience_s: float = 120.0

    def __call__(self, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments),
            cwd=self.folder,
            env=self._variables() | more,
            capture_output=True,
            text=True,
            timeout=self.patience_s,
            check=False,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def begin(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command and leave it running. Everything it says goes to `log`."""
        with log.open("wb") as said:
            return subprocess.Popen(
                command(*arguments), cwd=self.folder, env=self._variables(), stdout=said, stderr=said
            )

    def _variables(self) -> dict[str, str]:
        return environment(TRAINHOP_DATA_DIR=str(self.data_dir))

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    def job_file(self, name: str = "job.yaml", **changes: Any) -> str:
        job = {
            "name": "tiny",
            "base_model": str(self.models / "tiny"),
            "datasets": [{"path": "rows.jsonl"}],
            "max_steps": 6,
            "global_batch_size": 2,
            "sequence_len": 64,
        }
        (self.folder / "rows.jsonl").write_text(ROWS)
        (self.folder / name).write_text(json.dumps(job | changes))
        return name


def end(process: subprocess.Popen[bytes], data_dir: Path) -> None:
    """Stop the server, and the workers that would wait for it to come back."""
    process.terminate()
    process.wait(60)
    for note in (data_dir / "sessions").glob("*/pid.json"):
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)


def start_server(data_dir: Path, *options: str, **variables: str) -> subprocess.Popen[bytes]:
    words = command("up", "--port", "0", "--data-dir", str(data_dir), *options)
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "server.url").unlink(missing_ok=True)
    with (data_dir / "log").open("wb") as log:
        process = subprocess.Popen(
            words,
            env=environment(**variables),
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + 60
    while b"trainhop is running at" not in (data_dir / "log").read_bytes():
        assert process.poll() is None, (data_dir / "log").read_text()
        assert time.monotonic() < until, (data_dir / "log").read_text()
        time.sleep(0.05)
    return process


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A server on which nothing ever starts, so that what a test sees does not depend on how fast it is."""
    data_dir, models = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("models")
    (models / "tiny").mkdir()
    (models / "tiny" / "config.json").write_text("{}")
    process = start_server(data_dir, "--slots", "0", "--allow-folder", str(models))
    yield data_dir, models
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture
def trainhop(serving: tuple[Path, Path], tmp_path: Path) -> Shell:
    return Shell(tmp_path, *serving)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Shell]:
    """A command line without a server."""
    yield Shell(tmp_path, tmp_path / "no-server", tmp_path)
    shutil.rmtree(tmp_path / "no-server", ignore_errors=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    """A server in this process."""
    with page_server(tmp_path) as running:
        yield running


@pytest.fixture
def typed(server: PageServer) -> Callable[..., Result]:
    """Types a command in this process, as the admin of `server`. A refusal is the command's error."""

    def run(*words: str, stdin: str | None = None) -> Result:
        options = {"TRAINHOP_SERVER_URL": server.url, "TRAINHOP_TOKEN": server.api.admin_token}
        result = CliRunner().invoke(app, [*words], env=options, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def evaluated(server: PageServer) -> str:
    """An evaluation with 30 answers, of which 3 are identical, by its name."""
    admin = server.api.admin
    made = admin.submit(name="evaluated")["id"]
    add_evaluation(server.app.context.uow, made, 30, owner=admin.get("/me").json()["id"], same=3, tasks=tasks())
    return "evaluated"


@pytest.fixture
def hub() -> Iterator[HubEmulator]:
    """An emulated hub, which never sees the operator's own token."""
    with HubEmulator() as hub:
        hub.accounts |= {HUB_TOKEN: "admin-on-the-hub", OPERATORS: "operator"}
        yield hub
    assert not any(OPERATORS in (seen.authorization or "") for seen in hub.seen)


@pytest.fixture
def hub_shell(hub: HubEmulator, tmp_path: Path) -> Iterator[Shell]:
    """A shell beside a server that asks the emulated hub. The token in the file `token` is in no file of the server."""
    data = tmp_path / "data"
    (tmp_path / "token").write_text(HUB_TOKEN + "\n")
    on = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": OPERATORS, "TRAINHOP_HUB_ENDPOINT": hub.endpoint}
    process = start_server(data, "--slots", "0", **on)
    yield Shell(tmp_path, data, tmp_path)
    process.terminate()
    assert process.wait(60) == 0
    assert HUB_TOKEN.encode() not in b"".join(p.read_bytes() for p in data.rglob("*") if p.is_file())
