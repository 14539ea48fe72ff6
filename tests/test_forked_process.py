"""A forked process is like one that was started in the usual way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_job import write_rows
from benchmarks.tiny_model import byte_tokenizer
from orchestrator.adapters.token_preview import TokenLooks
from tests.helpers.forked_process import ROOT, ForkedProcess, forks, lines
from tests.helpers.waiting import wait_for
from worker.shared import limited_call
from worker.shared.dataset_spec import RowFormat
from worker.shared.process import tied

COMMAND = [sys.executable, "-m", "orchestrator.entrypoints.cli.main"]
USUAL = {"PYTHONHASHSEED": "1"}
"""Variables with which no process is forked."""


@pytest.fixture(params=["forked", "usual"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return {**os.environ, **(USUAL if request.param == "usual" else {})}


def begin(*words: str, **options: Any) -> ForkedProcess:
    process = subprocess.Popen([*COMMAND, *words], **options)
    assert isinstance(process, ForkedProcess)
    return process


def test_only_a_process_with_the_same_variables_is_forked() -> None:
    for variables, forked in (
        ({}, True),
        (USUAL, False),
        ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, True),
        ({"HF_HOME": "/"}, False),
    ):
        with begin("--version", env=os.environ | variables, stdout=subprocess.PIPE) as process:
            assert (process._answers is not None) == forked
            assert process.communicate()[0].startswith(b"trainhop ")


def test_a_variable_of_the_test_itself_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with begin("--version", stdout=subprocess.PIPE) as process:
        assert process._answers is None
        process.communicate()


def test_a_program_that_begins_with_our_lines_forks_and_has_none_of_ours(tmp_path: Path) -> None:
    program = f"""{lines()}
import subprocess
print([name for name in sys.modules if name.partition(".")[0] in ("tests", "worker")], sys.path[0] == {str(ROOT)!r})
with subprocess.Popen({[*COMMAND, "--version"]!r}, stdout=subprocess.PIPE) as process:
    print(process._answers is not None, process.communicate()[0].decode())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] False\nTrue trainhop ")


def test_it_says_and_returns_the_same(environment: dict[str, str], tmp_path: Path) -> None:
    environment["TRAINHOP_DATA_DIR"] = str(tmp_path)
    done = subprocess.run([*COMMAND, "no-such"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'no-such'" in done.stderr
    done = subprocess.run([*COMMAND, "ls"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "no server" in done.stderr.lower()


def test_its_command_variables_folder_and_umask_are_its_own(environment: dict[str, str], tmp_path: Path) -> None:
    environment["NEEDLE"] = "hay"
    words = ("up", "--port", "0", "--slots", "0", "--data-dir", str(tmp_path / "data"))
    before = os.umask(0o027)
    try:
        server = begin(*words, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    finally:
        os.umask(before)
    try:
        wait_for((tmp_path / "data" / "server.url").exists, "the server runs")
        entry = Path(f"/proc/{server.pid}")
        assert (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0") == [w.encode() for w in (*COMMAND, *words)]
        assert b"NEEDLE=hay" in (entry / "environ").read_bytes().split(b"\0")
        assert (entry / "cwd").readlink() == tmp_path
        assert "Umask:\t0027" in (entry / "status").read_text().splitlines()
        assert os.getsid(server.pid) == server.pid
        assert server.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.01)
    finally:
        server.kill()
    assert server.wait(60) == -signal.SIGKILL


def test_a_tied_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    command = tied([*COMMAND, "up", "--port", "0", "--slots", "0", "--data-dir", str(tmp_path)])
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert isinstance(server, ForkedProcess)
    assert server._answers is not None
    wait_for((tmp_path / "server.url").exists, "the server runs")
    server._answers.shutdown(socket.SHUT_RDWR)  # as the kernel does when this process ends
    wait_for(lambda: not Path(f"/proc/{server.pid}").exists(), "the server is killed")
    server.wait()


def test_a_process_with_the_usual_limits_is_forked_and_keeps_them(tmp_path: Path) -> None:
    """Guard: without `setrlimit` the second call answered."""
    before = forks["worker.shared.limited_call"]
    file = write_rows(tmp_path / "rows.jsonl", 30)
    request = {"path": str(file), "row_format": "messages", "container": "jsonl"}
    inspected = "orchestrator.services.data_reading:inspected"
    assert limited_call.call(inspected, request, cpu_s=10)["rows"] == 30
    file.write_bytes(file.read_bytes() * 5_000)
    with pytest.raises(limited_call.LimitError, match="needs more than 1 s of computing time"):
        limited_call.call(inspected, request, cpu_s=1)
    assert forks["worker.shared.limited_call"] == before + 2


def test_other_calls_with_limits_are_no_forks() -> None:
    before = forks["worker.shared.limited_call"]
    assert limited_call.call("json:dumps", {"a": 1}, cpu_s=10) == '{"a": 1}'
    with pytest.raises(limited_call.LimitError):
        limited_call.call("orchestrator.services.data_reading:inspected", {}, cpu_s=10, memory_bytes=16 << 20)
    assert forks["worker.shared.limited_call"] == before


def test_a_tokenizer_is_read_in_a_forked_process(tmp_path: Path) -> None:
    before = forks["worker.training.token_counts"]
    file, model = write_rows(tmp_path / "rows.jsonl", 30), tmp_path / "model"
    byte_tokenizer().save_pretrained(model)
    looks = TokenLooks(None, offline=True)
    found = looks.counts(str(model), file, RowFormat.MESSAGES, sequence_len=64, train_on_inputs=False)
    assert (found.rows, found.away) == (30, "")
    assert forks["worker.training.token_counts"] == before + 1
