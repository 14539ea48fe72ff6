"""`trainhop up` as a process: what it says, what it refuses, and a whole job through it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tiny_model import make_tiny_llama
from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.entrypoints.background.server import URL_FILE, leave_address
from tests.cli.conftest import Shell, end, environment, start_server
from tests.helpers.waiting import wait_for
from worker.shared.messages import GrantKind


def test_a_second_server_on_the_folder_is_refused_in_words(trainhop: Shell) -> None:
    said = trainhop("up", "--port", "0", code=1).stderr
    assert "Another server already uses" in said
    assert "--data-dir" in said


def test_a_terminal_shows_the_login_link_and_a_log_does_not(tmp_path: Path) -> None:
    """Guard: asked after the log had taken stderr's place, no terminal was one."""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "up", "--port", "0", "--data-dir"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "a")], env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while b"Ctrl-C stops the server" not in said:
        said += os.read(terminal, 4096)
    end(process, tmp_path / "a")
    os.close(terminal)
    assert re.search(rb"open +http://127\.0\.0\.1:\d+/login\S+ \(works once", said)
    end(start_server(tmp_path / "b"), tmp_path / "b")
    assert b"/login" not in (tmp_path / "b" / "log").read_bytes()


def test_a_taken_port_is_refused_in_words(elsewhere: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = elsewhere("up", "--port", port, code=1).stderr
    assert f"port {port}" in said
    assert "--port" in said


def test_a_database_of_a_newer_version_is_refused_in_words(elsewhere: Shell) -> None:
    elsewhere.data_dir.mkdir()
    with sqlite3.connect(elsewhere.data_dir / "trainhop.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()
    assert "newer trainhop" in elsewhere("up", "--port", "0", code=1).stderr


def test_a_wrong_setting_is_named(elsewhere: Shell) -> None:
    assert "TRAINHOP_TICK_S" in elsewhere("up", "--port", "0", code=2, TRAINHOP_TICK_S="soon").stderr
    assert "allowed_folders" in elsewhere("up", "--port", "0", code=2, TRAINHOP_ALLOWED_FOLDERS="/data").stderr


@pytest.mark.parametrize(
    ("variable", "value", "code", "words"),
    [
        ("PUBLIC_URL", "trainhop.example", 2, "TRAINHOP_PUBLIC_URL: must be an address"),
        ("DATABASE_URL", "mysql://someone@there/db", 2, "TRAINHOP_DATABASE_URL: must begin with postgresql://"),
        ("DATABASE_URL", "postgresql+no", 2, "TRAINHOP_DATABASE_URL: Could not parse"),
        ("DATABASE_URL", "postgresql://someone@127.0.0.1:1/db", 1, "Could not use the database: connection"),
        ("DATABASE_URL", "sqlite:////proc/none/trainhop.db", 1, "/proc/none: No such file or directory"),
        ("VAULT_KEY", "short", 1, "TRAINHOP_VAULT_KEY"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_in_words(
    elsewhere: Shell, variable: str, value: str, code: int, words: str
) -> None:
    """Guard: without its validator or its `except` each of these served, or ended in a traceback."""
    said = elsewhere("up", "--port", "0", code=code, **{f"TRAINHOP_{variable}": value}).stderr
    assert words in said.replace("\n", " ")
    assert "Traceback" not in said


def test_a_file_that_is_no_database_is_refused_in_words(elsewhere: Shell) -> None:
    elsewhere.data_dir.mkdir()
    (elsewhere.data_dir / "trainhop.db").write_text(
        "is a text, and long enough to be taken for a database's header\n" * 3
    )
    said = elsewhere("up", "--port", "0", code=1).stderr
    assert "Could not use the database: file is not a database" in said
    assert "Traceback" not in said


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `env_ignore_empty` an empty `TRAINHOP_DATA_DIR` put the database and its keys where one stood."""
    for name in Settings.model_fields:
        monkeypatch.setenv(f"TRAINHOP_{name.upper()}", "")
    found = Settings()
    assert {name: value for name, value in found if value != Settings.model_fields[name].default} == {}


def test_a_public_address_may_end_with_a_slash(tmp_path: Path) -> None:
    """Guard: without the strip in `config._address` machines were sent to `//api` for their data, and found nothing."""
    app = build(Settings(data_dir=tmp_path, public_url="https://trainhop.example/"))
    grant = app.store.grant_download("datasets/a", GrantKind.DATASET, sha256="0" * 64, size=1, shares_disk=False)
    app.close()
    assert grant.url is not None
    assert grant.url.startswith("https://trainhop.example/api/v1/blobs/datasets/a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_has_ended_well(tmp_path: Path, number: signal.Signals) -> None:
    process = start_server(tmp_path / "data")
    process.send_signal(number)
    assert process.wait(60) == 0


def test_the_address_of_a_server_appears_whole(tmp_path: Path) -> None:
    """Removed: the rename in `leave_address`; on a busy machine whoever waited for the file found nothing in it."""
    file = tmp_path / URL_FILE
    file.write_text("http://old\n")
    with file.open() as reader:
        leave_address(tmp_path, "http://new")
        assert reader.read() == "http://old\n"
    assert file.read_text() == "http://new\n"


def test_doctor_finds_the_server(trainhop: Shell) -> None:
    found = {f["name"]: f for f in trainhop.json("doctor")}
    assert (found["server"]["status"], found["database"]["status"]) == ("ok", "ok")


def test_watching_outlasts_a_restart_of_the_server(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "tiny").mkdir(parents=True)
    (models / "tiny" / "config.json").write_text("{}")
    shell = Shell(tmp_path, tmp_path / "data", models)
    options = ("--slots", "0", "--allow-folder", str(models))
    process = start_server(shell.data_dir, *options)
    job = shell("submit", shell.job_file()).stdout.strip()
    port = (shell.data_dir / "server.url").read_text().strip().rpartition(":")[2]
    said = tmp_path / "said"
    watching = shell.begin("watch", job, log=said)
    wait_for(lambda: "step 0/6" in said.read_text(), "the job is shown")
    process.terminate()
    process.wait(60)
    wait_for(lambda: "does not answer" in said.read_text(), "the server is missed")
    process = start_server(shell.data_dir, *options, "--port", port)
    wait_for(lambda: "connected to the server again" in said.read_text(), "the server is found again")
    shell("cancel", job)
    assert watching.wait(60) == 1
    process.terminate()
    process.wait(60)


@pytest.mark.slow
def test_a_job_is_trained_watched_and_brought_home(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_tiny_llama(models / "tiny")
    shell = Shell(tmp_path, tmp_path / "data", models)
    process = start_server(shell.data_dir, "--allow-folder", str(models), TRAINHOP_REPORT_EVERY_S="0.5")
    try:
        lines = shell("submit", shell.job_file(), "--watch", "--json").stdout.splitlines()
        job = json.loads(lines[-1])
        assert (job["state"], job["step"]) == ("succeeded", 6)
        home = shell.json("adapter", job["id"])
        assert home["path"] == f"{job['id']}-adapter"
        assert (tmp_path / home["path"] / "adapter_config.json").is_file()
        shell("adapter", job["id"], code=2)
        head = shell.json("checkpoints", job["id"])[-1]["sha256"]
        assert (
            Path(tmp_path, shell("checkpoints", job["id"], "--download", head[:8]).stdout.strip()).stat().st_size > 1000
        )
        assert len(shell.json("metrics", job["id"], "--name", "loss")) == 6
        for begin in ("6", head[:12]):
            clone = shell.json("clone", job["id"], "--from", begin, "--set", "max_steps=8")
            assert (clone["cloned_from"], clone["first_step"], clone["total_steps"]) == (job["id"], 6, 8)
        assert f"{job['id']} at step 6" in shell("show", clone["id"]).stdout
        assert (
            "seed: 7 here, 42 in the checkpoint"
            in shell("clone", job["id"], "--from", "6", "--set", "seed=7", code=2).stderr
        )
        shell("clone", job["id"], "--from", "5", code=3)
        assert shell("metrics", job["id"], "--name", "loss", "--csv").stdout.startswith("name,step,value")
        assert "step 6 loss" in shell("logs", "--follow", job["id"]).stdout
        assert "job.succeeded" in shell("events", "--follow", job["id"]).stdout
    finally:
        end(process, shell.data_dir)
