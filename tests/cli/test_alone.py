"""What the command line does without a server: job files, refusals, help."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.entrypoints.cli.client import Client
from orchestrator.entrypoints.cli.output import clean, seconds, size, sparkline
from orchestrator.entrypoints.cli.watch import Losses
from orchestrator.entrypoints.demo.command import examples
from orchestrator.entrypoints.demo.report import draw
from tests.cli.conftest import Shell, environment
from trainhop.download import unpack
from trainhop.errors import Error, where


def test_a_wrong_key_is_named_with_the_nearest_right_one(elsewhere: Shell) -> None:
    file = elsewhere.job_file(lora_rank=8)
    said = elsewhere("submit", file, code=2).stderr
    assert said == "job.yaml: lora_rank: unknown key 'lora_rank'; did you mean 'lora_r'?\n"


def test_a_slip_in_yaml_is_named_with_line_and_column(elsewhere: Shell) -> None:
    (elsewhere.folder / "job.yaml").write_text("name: a\nbase_model: b\n  lora_r: 3\n")
    assert elsewhere("submit", "job.yaml", code=2).stderr.startswith("job.yaml:3:9: ")
    (elsewhere.folder / "job.json").write_text('{"name": }')
    assert elsewhere("submit", "job.json", code=2).stderr.startswith("job.json:1:10: ")


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(elsewhere: Shell, text: str) -> None:
    (elsewhere.folder / "job.yaml").write_text(text)
    assert "this is not a mapping" in elsewhere("submit", "job.yaml", code=2).stderr


def test_a_missing_file_is_wrong_use(elsewhere: Shell) -> None:
    assert elsewhere("submit", "none.yaml", code=2).stderr == "none.yaml: No such file or directory\n"


@pytest.mark.parametrize("change", ["lora_r", "=3", "datasets.x.path=1", "datasets.7.path=1", "name.a=1"])
def test_a_change_that_leads_nowhere_is_refused(elsewhere: Shell, change: str) -> None:
    said = elsewhere("submit", elsewhere.job_file(), "--set", change, code=2).stderr
    assert said.startswith(f"--set {change}: ")


def test_without_a_server_the_remedy_is_told(elsewhere: Shell) -> None:
    assert "trainhop up" in elsewhere("ls", code=5).stderr
    assert "does not answer" in elsewhere("--server", "http://127.0.0.1:9", "ls", code=5).stderr


def test_help_needs_none_of_the_heavy_libraries() -> None:
    """What makes `trainhop --help` slow is imports, and those can be counted where seconds cannot be trusted."""
    program = (
        "import sys, orchestrator.entrypoints.cli.main\n"
        "print(*{'httpx', 'pydantic', 'sqlalchemy', 'fastapi', 'yaml', 'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_every_command_explains_itself(elsewhere: Shell) -> None:
    text = elsewhere("--help").stdout
    for command in ("up", "submit", "plan", "ls", "show", "watch", "logs", "pause", "resume", "cancel", "retry"):
        assert command in text
    for command in ("priority", "clone", "checkpoints", "adapter", "metrics", "events", "doctor", "demo"):
        assert command in text


def test_doctor_finds_no_fault_in_an_empty_folder(elsewhere: Shell) -> None:
    found = {f["name"]: f for f in elsewhere.json("doctor")}
    assert found["python"]["status"] == "ok"
    assert found["database"]["status"] == "ok"
    assert found["server"]["status"] == "warn"
    assert "trainhop up" in found["server"]["remedy"]
    assert {found[f"extra {name}"]["status"] for name in ("server", "kaggle", "drive")} == {"ok"}
    assert found["training"]["status"] == "ok"


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../x", "c:x", "a\\..\\x"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("fine.json", "{}")
        archive.writestr(name, "x")
    with pytest.raises(Error, match="unsafe entry"):
        unpack(tmp_path / "a.zip", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_link_and_a_bomb_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(Error, match="unsafe entry"):
        unpack(tmp_path / "link.zip", tmp_path / "to")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * (200 << 20))
    with pytest.raises(Error, match="unpacks to more than"):
        unpack(tmp_path / "bomb.zip", tmp_path / "to")


def test_text_is_made_harmless_and_stays_readable() -> None:
    assert clean("a\x1b[2Jb\x1b]0;title\x07c\x9b1md\x00\u202e") == "abcd"
    assert clean("Grüße 山 ok") == "Grüße 山 ok"
    assert clean("10%\r20%\nnext", one_line=False) == "10%\n20%\nnext"


def test_figures_read_well() -> None:
    assert [seconds(v) for v in (None, 8, 200, 7500, 273_600)] == ["-", "8 s", "3 min 20 s", "2 h 05 min", "3 d 4 h"]
    assert [size(v) for v in (12, 2048, 3 << 30)] == ["12 B", "2.0 KiB", "3.0 GiB"]
    assert sparkline([3, 2, 1, float("nan")]) == "█▅▁"
    assert len(sparkline(list(range(1000)))) == 40
    assert where("/datasets/0/path") == "datasets[0].path"


class _Answers:
    """Gives the loss of every step up to the newest."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def get(self, _path: str, *, name: str, from_step: int) -> dict[str, Any]:
        return {"items": [{"step": s, "name": name, "value": v} for s, v in self.values.items() if s >= from_step]}


def test_losses_keep_what_a_lost_session_had_trained() -> None:
    server, losses = _Answers(), Losses()

    def job(session: str, step: int, head: int) -> dict[str, Any]:
        return {"id": "j", "step": step, "session": {"id": session, "step": step}, "head": {"step": head}}

    server.values = {1: 4.0, 2: 3.0, 3: 2.0}
    losses.update(cast("Client", server), job("a", 3, 2))
    losses.update(cast("Client", server), job("b", 2, 2))  # step 3 is still the first session's
    server.values |= {3: 2.5, 4: 1.0}
    losses.update(cast("Client", server), job("b", 3, 2))
    assert losses.by_session == {"a": {1: 4.0, 2: 3.0, 3: 2.0}, "b": {3: 2.5}}
    assert losses.curve() == {1: 4.0, 2: 3.0, 3: 2.5}
    rows = [{"step": s, "value": v} for s, v in server.values.items()]
    losses.complete(rows, [{"id": "a", "first_step": 0, "last_step": 3}, {"id": "b", "first_step": 2, "last_step": 4}])
    assert losses.by_session["b"] == {3: 2.5, 4: 1.0}


def test_the_demo_draws_its_curve_and_finds_its_examples(tmp_path: Path) -> None:
    assert (examples() / "demo.yaml").is_file()
    sessions = [
        {"id": "a", "first_step": 0, "outcome": "lost", "state": "expired"},
        {"id": "b", "first_step": 2, "outcome": "completed", "state": "released"},
    ]
    drawn = draw(tmp_path / "loss.png", {"a": {1: 4.0, 2: 3.0, 3: 2.0}, "b": {3: 2.0, 4: 1.0}}, sessions)
    assert drawn is not None
    assert drawn.read_bytes().startswith(b"\x89PNG")


ENDED_DEMO = """
import sys, time
from orchestrator.entrypoints.cli.main import main
from orchestrator.entrypoints.demo import command
def run_demo(folder, **options):
    try:
        print("ready", flush=True)
        time.sleep(120)
    finally:
        print("closed", flush=True)
command.run_demo = run_demo
sys.argv = ["trainhop", "demo"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_however_a_demo_is_ended_it_closes(number: signal.Signals, tmp_path: Path) -> None:
    """Guard: without the handlers, SIGTERM and a closed terminal left its worker training."""
    with subprocess.Popen([sys.executable, "-c", ENDED_DEMO], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline() == "ready\n"
        demo.send_signal(number)
        assert demo.communicate(timeout=60)[0] == "closed\n"
    assert demo.returncode == 130


def test_the_sandbox_says_that_it_needs_a_checkout(tmp_path: Path) -> None:
    """An installed package has no emulators: the packages are laid out here as a wheel does it."""
    for package in ("orchestrator", "trainhop", "worker"):
        shutil.copytree(
            Path(__file__).parents[2] / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "demo", "--sandbox"]
    variables = environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "Run it from a checkout" in done.stderr
    assert not (tmp_path / "trainhop-demo").exists()
