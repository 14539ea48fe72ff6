"""A person at a machine: what `trainhop join` refuses, each in one sentence, and the unit of systemd."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from orchestrator.entrypoints.cli.main import app
from worker.joined import joining, membership, prepare, readings, unit
from worker.joined.membership import MachineError, Membership
from worker.joined.server import Away, Left, Server
from worker.joined.worker_code import code_folder
from worker.shared import wheel
from worker.shared.joined_messages import MachineReport, WorkerFile

PLACE = Membership(
    server="http://one:8642", account="account-1", name="attic", token="thl_x", instance="i", python=sys.executable
)

REPORT = MachineReport(protocol=1, offer=readings.offer([], 1))


def _python(folder: Path, body: str) -> str:
    """A program that stands in for another Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_place_is_private_and_kept_once(tmp_path):
    """Guards: with the default permissions the token was readable by all; without `create_once` the second server took
    the place of the first."""
    folder = tmp_path / "a" / "b"
    membership.keep(folder, PLACE)
    assert membership.read(folder) == PLACE
    assert stat.S_IMODE((folder / membership.FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(
        MachineError, match=r"has already joined http://one:8642 as attic.*another folder: --folder DIR"
    ):
        joining.join(folder, "http://two:8642", "thm_x", print)
    with pytest.raises(MachineError, match="Start it with `trainhop join`"):
        joining.join(folder, "http://one:8642/", "thm_x", print)
    (folder / membership.FILE).write_text("{}")
    with pytest.raises(MachineError, match="cannot be read"):
        membership.read(folder)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 3.10.12", "is Python 3.10.12, but workers need Python 3.11 or newer"),
        ("echo hello", "is not a Python"),
        ("exit 3", "is not a Python"),
    ],
)
def test_a_python_that_cannot_run_workers_is_refused(tmp_path, body, words):
    with pytest.raises(MachineError, match=words):
        prepare.check(_python(tmp_path, body))


def test_a_machine_without_that_python_is_told_so(tmp_path):
    with pytest.raises(MachineError, match=r"is not a Python\. Give the path of one with --python."):
        prepare.check(str(tmp_path / "none"))


def test_a_python_without_torch_is_refused(tmp_path):
    """Guard: without `find_spec` the first session failed at its import."""
    bare = _python(tmp_path, f'exec {sys.executable} -IS "$@"')
    with pytest.raises(MachineError, match=r"has no torch\. Install it there, or give another Python with --python."):
        prepare.check(bare)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["join", "http://one"], "Give both the server's address and a code: trainhop join URL CODE."),
        (["join"], "This machine has not joined a server. Create a code with `trainhop accounts code`."),
        (["join", "ftp://one", "thm_x"], "ftp://one is not the address of a server."),
        (["join", "http://127.0.0.1:9", "thm_x", "--shares", "65"], "--shares must be between 1 and 64."),
        (["leave"], "This machine has not joined a server."),
    ],
)
def test_a_command_that_cannot_be_carried_out(tmp_path, words, said):
    result = CliRunner().invoke(app, [*words, "--folder", str(tmp_path)])
    assert result.exit_code != 0
    shown = f"{result.stderr}{result.exception}"
    assert said in " ".join(shown.split())
    assert "Traceback" not in result.output


class Answers(httpx.MockTransport):
    """A server that always gives this answer."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(lambda _: httpx.Response(status, json=body))


def _server(status: int, body: object) -> Server:
    made = Server("http://one:8642", PLACE)
    made._client = httpx.Client(transport=Answers(status, body))
    return made


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, {"type": "urn:trainhop:problem:http", "detail": "no"}, Left, "no longer knows this machine"),
        (409, {"type": "urn:trainhop:problem:conflict", "detail": "This code was used."}, MachineError, "was used"),
        (503, {"type": "urn:trainhop:problem:unavailable", "detail": "later"}, Away, "later"),
        (404, {"hello": "world"}, Away, "is not a Trainhop server"),
        (200, {"hello": "world"}, Away, "may have another version"),
    ],
)
def test_an_answer_decides_whether_to_try_again(status, body, kind, words):
    """Guard: without `is_ours` a proxy's 404 while the server was down ended the agent."""
    with pytest.raises(kind, match=words):
        _server(status, body).report(REPORT)


def test_nothing_is_changed_if_no_server_answers(tmp_path):
    with pytest.raises(MachineError, match=r"does not answer.*Nothing was changed"):
        joining.join(tmp_path / "x", "http://127.0.0.1:9", "thm_x", print)
    assert not (tmp_path / "x").exists()


def test_the_servers_worker_is_used_and_checked(tmp_path):
    """Guard: without the comparison of hashes a worker that was cut short was unpacked."""
    ours = wheel.build(adapters=True)
    wanted, asked = WorkerFile(name=ours.name, sha256=ours.sha256), []

    class Wheels(Server):
        data = ours.data

        def worker(self, name: str, sha256: str) -> bytes:
            asked.append((name, sha256))
            return self.data

    place = code_folder(Wheels("http://one:8642"), tmp_path, wanted, sys.executable)
    assert (place / "worker" / "joined").is_dir(), "the installed one, which is the same"
    assert not asked
    for _ in range(2):
        place = code_folder(Wheels("http://one:8642"), tmp_path, wanted, "/another/python")
    assert (place / "worker" / "__main__.py").is_file()
    assert len(asked) == 1
    shutil.rmtree(place)
    Wheels.data = ours.data[:-1]
    with pytest.raises(MachineError, match="damaged"):
        code_folder(Wheels("http://one:8642"), tmp_path, wanted, "/another/python")


def test_a_drain_is_over_after_a_restart(tmp_path):
    membership.ask_to(tmp_path, "drain")
    assert membership.asked_to(tmp_path, membership.boot_id()) == "drain"
    assert membership.asked_to(tmp_path, "another") == ""
    assert not (tmp_path / membership.LEAVING).exists()
    membership.ask_to(tmp_path, "leave")
    assert membership.asked_to(tmp_path, "another") == "leave"


def test_the_unit_keeps_sessions_and_is_accepted(tmp_path):
    """Guard: without `KillMode=process` a restart of the agent ended its sessions."""
    text = unit.text(tmp_path / "a 100% folder")
    assert "KillMode=process" in text
    assert f"RestartPreventExitStatus={3}" in text
    assert '100%% folder"' in text
    if (verify := shutil.which("systemd-analyze")) is None:
        return
    path = tmp_path / "trainhop-joined.service"
    path.write_text(text)
    done = subprocess.run([verify, "--user", "verify", str(path)], capture_output=True, text=True, check=False)
    assert "trainhop-joined.service:" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [("echo 'Failed to connect to bus' >&2; exit 1", "Failed to connect to bus"), (None, "has no systemd")],
)
def test_a_machine_without_systemd_is_told_how_else(tmp_path, monkeypatch, body, words):
    programs = tmp_path / "bin"
    programs.mkdir()
    if body is not None:
        (programs / "systemctl").write_text(f"#!/bin/sh\n{body}\n")
        (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs) if body is None else f"{programs}:/bin:/usr/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(MachineError, match=words):
        unit.enable(tmp_path)
    assert not unit.path(tmp_path).exists()


def test_the_unit_is_started_and_removed_again(tmp_path, monkeypatch):
    programs, said = tmp_path / "bin", tmp_path / "said"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert "loginctl enable-linger" in unit.enable(tmp_path)
    assert str(tmp_path) in unit.path(tmp_path).read_text()
    unit.disable(tmp_path)
    name = unit.name(tmp_path)
    assert said.read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable --now {name}",
        f"--user disable --now {name}",
    ]
    assert not unit.path(tmp_path).exists()
    assert json.loads(json.dumps(unit.name(membership.default_folder()))) == "trainhop-joined.service"


SMI = """#!/bin/sh
echo "0, Tesla T4, 15360, 1024, 37"
echo "1, NVIDIA H200, 143771, 0, [N/A]"
"""
"""What `nvidia-smi` prints for the fields that we ask for. A GPU that does not know its load says so."""


@pytest.mark.parametrize(("visible", "numbers"), [(None, ["0", "1"]), ("1", ["1"]), ("", [])])
def test_gpus_are_read_from_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, numbers: list[str]
) -> None:
    """Guard: without the look at CUDA_VISIBLE_DEVICES, a GPU was offered that workers do not see."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = readings.gpus("2.11.0+cu128")
    assert [number for number, _ in found] == numbers
    assert readings.gpus("2.13.0+cpu") == []
    if len(found) == 2:
        (_, t4), (_, h200) = found
        assert (t4.name, t4.total_bytes, t4.used_bytes, t4.percent) == ("Tesla T4", 15360 << 20, 1 << 30, 37.0)
        assert h200.percent is None
        offer = readings.offer(found, shares=2)
        assert (offer.slots, offer.memory_bytes, offer.gpu) == (4, 7680 << 20, True)
        assert readings.variables(found, 3, 2) == {
            "CUDA_VISIBLE_DEVICES": "1",
            "WORKER_GPU_MEMORY_BYTES": str((143771 << 20) // 2),
        }


def test_a_machine_without_nvidia_smi_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert readings.gpus("2.11.0+cu128") == []
